"""The precision of the attacked and of the scored defense: what is cast, what is shared, and what a row says."""

import pytest
import torch
from torch import nn

from dp.objectives import margin
from dp.output.report import caveat_lines
from dp.precision import DTYPES, cast, narrowed
from dp.rng import Streams
from dp.runs.build import build
from dp.runs.caveats import caveats_of
from dp.runs.faster import faster_lines, speedups, told
from dp.runs.keys import run_key
from tests.helpers.compose import composed, setup

SMALL = ("protocol.images=2", "workers=1", "dataset.draws_per_call=1")
BFLOAT16 = torch.bfloat16


def arms(*overrides):
    return build(composed(*SMALL, *overrides)).arms


def dtypes(model):
    """Of the first weights that the images meet."""
    x = torch.zeros(1, dtype=torch.float64)
    return {narrowed(x, module.net).dtype for module in (model.denoiser, model.classifier)}


def test_by_default_one_object_is_attacked_and_scored():
    for arm in arms("threat_model.grad=full").values():
        assert arm.attacked is arm.scored
        assert not arm.attacked.tf32


@pytest.mark.parametrize("names", [("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", "tf32")])
def test_two_dtypes_have_networks_of_their_own(names):
    for arm in arms("threat_model.grad=full", f"dtype={names[0]}", f"scored_dtype={names[1]}").values():
        models = arm.attacked, arm.scored
        for model, name in zip(models, names, strict=True):
            assert narrowed(torch.zeros(1), model.classifier.net).dtype == DTYPES[name]
            assert model.tf32 == (name == "tf32")
        own, other = ({p.data_ptr() for p in model.parameters()} for model in models)
        assert not own & other


class Normalizing(nn.Module):
    """A classifier that holds the mean and the std of its images, as those of RobustBench do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 1, 1, 1), 0.5))
        self.conv, self.norm, self.last = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x):
        return self.last(input=self.norm(self.conv(x - self.mean)).relu().mean(dim=(2, 3)))


def test_buffers_that_widen_the_image_are_no_obstacle():
    net, x = Normalizing().eval().requires_grad_(False), torch.rand(2, 1, 8, 8)
    expected = net(x)
    cast(net, BFLOAT16)
    leaf = narrowed(x, net).requires_grad_()
    found = net(leaf)
    assert found.dtype == BFLOAT16
    assert torch.autograd.grad(found.float().sum(), leaf)[0].dtype == BFLOAT16
    assert torch.allclose(found.float(), expected, atol=0.02)


def test_tf32_shares_the_networks_and_switches_the_products_for_its_own_calls_alone():
    defended = arms("threat_model.grad=full", "dtype=tf32")["defended"]
    assert defended.attacked is not defended.scored
    assert defended.attacked.classifier is defended.scored.classifier
    flags = []
    hook = defended.scored.classifier.register_forward_hook(
        lambda *_: flags.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
    )
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    x, y, rng = torch.rand(1, 1, 16, 16), torch.tensor([3]), Streams([0], 0, "test")
    defended.attacked.gradient_mode("bpda").loss_gradient(x, y, rng, 1)
    defended.scored.logits(x, rng, 1)
    hook.remove()
    assert flags[0] == (True, True)
    assert flags[-1] == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("purifier", ["adp", "atop", "diffpure", "gdmp", "impure", "langevin"])
def test_bfloat16_networks_lead_about_the_same_way(purifier):
    """Images, losses and gradients stay float32, and the gradient keeps its direction."""
    defended = arms(f"purifier={purifier}", "dtype=bfloat16", "threat_model.grad=full")["defended"]
    x, y, rng = composed_images(), torch.tensor([3, 5]), Streams([0, 1], 0, "test")
    (loss, low), (_, exact) = (m.loss_gradient(x, y, rng, 1, margin) for m in (defended.attacked, defended.scored))
    assert loss.dtype == low.dtype == torch.float32
    assert not torch.equal(low, exact)
    assert float(torch.cosine_similarity(low.flatten(), exact.flatten(), dim=0)) > 0.8


def composed_images():
    return build(composed(*SMALL, "purifier=none")).subset.x


def test_the_key_names_a_precision_only_where_it_departs_from_the_default():
    keys = [run_key(composed(*SMALL, *more)) for more in ((), ("scored_dtype=float32",), ("dtype=float32",))]
    assert len({*keys}) == 1
    changed = ["dtype=bfloat16", "dtype=tf32", "scored_dtype=bfloat16", "scored_dtype=tf32"]
    assert len({keys[0], *(run_key(composed(*SMALL, change)) for change in changed)}) == 5
    without = {key: value for key, value in composed(*SMALL).items() if key != "scored_dtype"}
    assert run_key(without) == keys[0]  # the configuration of a row from before


def test_a_row_says_both():
    made = setup(*SMALL, "dtype=bfloat16")
    facts = caveats_of(made, build(made.config)).as_data()
    said = "the networks' precision: attacked in bfloat16, scored in float32"
    assert said in caveat_lines(made.config, facts)
    plain = {**made.config, "dtype": "float32"}
    assert not any("precision" in line for line in caveat_lines(plain, facts))


def test_other_precisions_are_measured_on_copies_and_said_where_they_help():
    config = composed(*SMALL, "purifier=diffpure")
    evaluation = build(config)
    model = evaluation.arms["defended"].attacked
    before = [p.clone() for p in model.parameters()]
    asked, factors = model.evaluations, speedups(evaluation)
    assert model.evaluations == asked
    assert set(factors) == {"tf32", "bfloat16"}
    assert all(factor > 0 for factor in factors.values())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert faster_lines(evaluation, config) == []  # on a CPU
    (line,) = told({"tf32": 1.04, "bfloat16": 3.21})
    assert "3.2 times as fast with dtype=bfloat16" in line
    assert "tf32" not in line
    assert told({"tf32": 1.0, "bfloat16": 0.9}) == []
