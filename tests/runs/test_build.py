"""Objects of a run: what is built, on what terms, and what is not."""

import functools
import sys

import numpy as np
import pytest
import torch

from dp.defense.defended import Defended, unbound
from dp.diffusion.denoisers import VP, EpsNet, Gaussian
from dp.evaluation.dry import check_purifier, check_variance, dry_nfe, dry_run
from dp.purifiers import diffpure
from dp.purifiers.module import PurifierModule
from dp.rng import Streams
from dp.runs.build import build, check_networks, defense
from dp.runs.compose import make
from dp.subset import Subset, in_own_types
from dp.weights.needed import needed
from tests.helpers import compose
from tests.helpers.compose import composed

MODULE = """
from torch import nn

from dp.purifiers.module import PurifierModule


class Gain(PurifierModule):
    def __init__(self, gain: float):
        super().__init__()
        self.net = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.net.weight, gain)

    def forward(self, x, denoiser, classifier, rng, *, on_step=None):
        return self.evaluate(self.net, x)


def half(x, denoiser, classifier, rng, *, on_step=None):
    return 0.5 * x
"""
YAML = """
# A gain, for the tests.
defaults: [override /denoiser@_global_.denoiser: none]
_target_: gain_of_the_tests.Gain
gain: 0.9
gradients:
  half: {_target_: gain_of_the_tests.half, _partial_: true}
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A purifier with weights of its own in a folder of plug-ins."""
    (tmp_path / "mine" / "purifier").mkdir(parents=True)
    (tmp_path / "mine" / "purifier" / "gain.yaml").write_text(YAML)
    (tmp_path / "gain_of_the_tests.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(compose, "CONFIG_DIRS", [str(tmp_path / "mine")])
    yield
    sys.modules.pop("gain_of_the_tests", None)


@pytest.mark.parametrize("purifier", ["none", "gain"])
def test_without_a_denoiser_none_is_fetched_or_built(outside, purifier):
    config = composed("dataset=digits", f"purifier={purifier}", "protocol.images=2")
    assert config["choices"]["denoiser"] == "none"
    assert [asset.file for asset in needed(config)] == ["digits_classifier.safetensors"]
    assert build(config).arms["defended"].scored.denoiser is None
    elsewhere = composed("dataset=cifar10", f"purifier={purifier}")
    assert not any("edm" in asset.file for asset in needed(elsewhere))
    assert any("edm" in asset.file for asset in needed(composed("dataset=cifar10")))


@pytest.mark.parametrize("memory", ["store", "recompute", "auto"])
def test_a_purifiers_own_network_is_handled_as_a_denoisers(outside, memory):
    config = composed("purifier=gain", "protocol.images=2", f"memory={memory}", "dtype=bfloat16")
    arm = build(config).arms["defended"]
    model, own, scored = arm.attacked, unbound(arm.attacked.purifier), unbound(arm.scored.purifier)
    assert isinstance(own, PurifierModule)
    assert isinstance(scored, PurifierModule)
    assert own.memory == scored.memory == ("store" if memory == "auto" else memory)
    assert [{p.dtype for p in each.parameters()} for each in (own, scored)] == [{torch.bfloat16}, {torch.float32}]
    with torch.no_grad():
        x = torch.full((1, 1, 2, 2), 1.001)
        out = own(x, None, None, None)
    assert out.dtype == torch.float32  # states stay wide ...
    assert float(out[0, 0, 0, 0]) == pytest.approx(0.8984375)  # ... .9 and 1.001 are rounded: the network's precision
    assert {id(p) for p in own.parameters()} < {id(p) for p in model.parameters()}
    with torch.no_grad():
        model.purify(torch.rand(1, 1, 16, 16), Streams([0], 0, "test"))
    assert model.nfe == 1


def test_a_gradient_variant_with_a_target_of_its_own_is_attacked(outside):
    config = composed("purifier=gain", "threat_model.grad=half", "protocol.images=2")
    arm = build(config).arms["defended"]
    x = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(arm.attacked.purifier(x, None, None, None), 0.5 * x)
        torch.testing.assert_close(arm.scored.purifier(x, None, None, None), 0.9 * x)
    with pytest.raises(ValueError, match="need a gradient variant third"):
        build(composed("purifier=gain", "threat_model.grad=third", "protocol.images=2"))


def test_a_purifiers_own_error_is_no_missing_denoiser(outside):
    def broken(x, denoiser, classifier, rng, *, on_step=None):
        return x.no_such_method()

    scored = build(composed("purifier=gain", "protocol.images=2")).arms["defended"].scored
    one = Subset(torch.tensor([0]), torch.rand(1, 1, 16, 16), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"broken with AttributeError: .*no_such_method' \(test_build.py, line"):
        dry_nfe(Defended(broken, None, scored.classifier), one)


class Predictor(torch.nn.Module):
    """A noise predictor with `more` further channels for each of the image's."""

    def __init__(self, more: int):
        super().__init__()
        self.more, self.shapes = more, []

    def forward(self, x, label):
        self.shapes.append(tuple(x.shape))
        return torch.zeros_like(x).repeat(1, 1 + self.more, 1, 1)


def test_a_learned_variance_is_asked_of_the_defenses_own_denoiser_once():
    """The cheap denoiser has any variance. The network of the defense is asked for one, at its own size."""
    scored = build(composed("purifier=none", "protocol.images=2")).arms["defended"].scored
    one = Subset(torch.tensor([0]), torch.rand(1, 1, 16, 16), torch.tensor([0]))
    purify = functools.partial(diffpure.purify, t=0.1, steps=4, eta=1.0, variance="learned")
    net = Predictor(1)
    model = Defended(purify, EpsNet(net, size=32), scored.classifier)
    assert dry_nfe(model, one) == 4
    assert net.shapes == []
    check_variance(model, one)
    assert net.shapes == [(1, 1, 32, 32)]
    for denoiser in (Gaussian(), EpsNet(Predictor(0))):
        with pytest.raises(ValueError, match=r"^need a (noise predictor|network) with learned variance, got"):
            check_variance(Defended(purify, denoiser, scored.classifier), one)


def test_the_dry_run_has_the_clock_of_the_denoiser():
    """In continuous time there is no noise at time 0, so DiffPure takes one step less."""
    scored = build(composed("purifier=none", "protocol.images=2")).arms["defended"].scored
    one = Subset(torch.tensor([0]), torch.rand(1, 1, 16, 16), torch.tensor([0]))
    purify = functools.partial(diffpure.purify, t=0.01, steps=10, eta=1.0, index_shift=1)
    found = [dry_nfe(Defended(purify, of(Predictor(0)), scored.classifier), one) for of in (EpsNet, VP)]
    assert found == [10, 9]


def test_a_target_outside_the_known_packages_is_refused(outside):
    with pytest.raises(ValueError, match=r"need _target_ below dp, .*torchvision\.models, got os\.system"):
        make({"_target_": "os.system", "command": "true"})
    with pytest.raises(ValueError, match=r"got gain_of_the_tests\.half"):
        make({"_target_": "gain_of_the_tests.half", "_partial_": True})
    assert composed("purifier=gain")["plugins"]["modules"] == ["gain_of_the_tests"]


def test_reserved_keys_reach_no_function():
    node = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 3, "published": "x"}
    reserved = {"per_dataset": {"default": {"in_channels": 9}}, "gradients": {}, "version": 2}
    assert make({**node, **reserved}).out_channels == 2


class Shift(torch.nn.Module):
    """A network that a purifier may hide."""


def hiding(x, denoiser, classifier, rng, *, on_step=None, net=None):
    return x


class Holding(PurifierModule):
    """A purifier that is its own network."""

    def forward(self, x, denoiser, classifier, rng, *, on_step=None):
        return x


@pytest.mark.parametrize(
    "purify", [functools.partial(hiding, net=Shift()), functools.partial(hiding, 1, Shift()), Shift()]
)
def test_networks_that_a_run_would_not_see_are_refused(purify):
    with pytest.raises(
        ValueError, match=r"need a purifier with networks of its own to be a dp\.purifiers\.module\.PurifierModule"
    ):
        check_networks(purify)


@pytest.mark.parametrize("purify", [hiding, functools.partial(functools.partial(Holding()), on_step=None)])
def test_networks_that_a_run_sees_are_accepted(purify):
    assert check_networks(purify) is None


def test_own_networks_are_for_evaluation(outside):
    """Dropout is off, and no weight is trained."""
    (own,) = defense(composed("purifier=gain", "protocol.images=2"), "cpu").networks
    assert len(list(own.parameters())) == 1
    assert not any(module.training for module in own.modules())
    assert not any(parameter.requires_grad for parameter in own.parameters())


def test_a_loaders_images_become_float32_and_its_labels_int64():
    """NumPy divides to float64, and stores labels in a byte."""
    ids, x = torch.arange(2, dtype=torch.int32), torch.rand(2, 1, 4, 4, dtype=torch.float64)
    found = in_own_types(Subset(ids, x, torch.tensor([1, 0], dtype=torch.uint8)))
    assert [part.dtype for part in found] == [torch.int64, torch.float32, torch.int64]
    with pytest.raises(ValueError, match="need labels as whole numbers, got a loader's labels"):
        in_own_types(Subset(ids, x, torch.zeros(2)))


def in_place(x, denoiser, classifier, rng, *, on_step=None):
    return x.mul_(0.5)


def torchs_noise(x, denoiser, classifier, rng, *, on_step=None):
    return (x + 0.1 * torch.randn_like(x)).clamp(0, 1)


def numpys_noise(x, denoiser, classifier, rng, *, on_step=None):
    return (x + 0.1 * torch.from_numpy(np.random.default_rng().normal(size=x.shape)).float()).clamp(0, 1)


def smaller(x, denoiser, classifier, rng, *, on_step=None):
    return x[:, :, :8, :8]


def in_pm1(x, denoiser, classifier, rng, *, on_step=None):
    return 2 * x - 1


def not_a_number(x, denoiser, classifier, rng, *, on_step=None):
    return x / torch.zeros_like(x)


def several(x, denoiser, classifier, rng, *, on_step=None):
    return x, None


@pytest.mark.parametrize(
    ("purify", "told"),
    [
        (in_place, "need a purifier that leaves its input as it is"),
        (torchs_noise, "need a purifier that answers the same for the same noise"),
        (numpys_noise, "need a purifier that answers the same for the same noise"),
        (smaller, "need purified images of the given size"),
        (in_pm1, r"need purified images in \[0,1\], got values from -1.00 to 1.00: images z in \[-1,1\] are"),
        (not_a_number, r"need purified images in \[0,1\], got values from nan to nan"),
        (several, "need a purifier that returns a tensor, got one that returns a tuple"),
    ],
)
def test_a_purifier_that_breaks_a_rule_is_refused_before_it_runs(purify, told, monkeypatch):
    """Else its row would be wrong without a word."""
    config = composed("purifier=none", "protocol.images=2")
    broken = Defended(purify, None, defense(config, "cpu").classifier)
    monkeypatch.setattr("dp.runs.build.defenses", lambda config, device: (broken, broken))
    with pytest.raises(ValueError, match=told):
        build(config)


def test_a_try_leaves_the_images_as_they_are():
    one = Subset(torch.tensor([0]), torch.full((1, 1, 16, 16), 0.5), torch.tensor([0]))
    model = Defended(in_place, None, defense(composed("purifier=none"), "cpu").classifier)
    assert dry_nfe(model, one) == 0
    with pytest.raises(ValueError, match="leaves its input as it is"):
        check_purifier(model, one)
    assert one.x.unique().tolist() == [0.5]


def shuffled(x, denoiser, classifier, rng, *, on_step=None):
    order = torch.randperm(x.shape[3], generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.rrelu(x[..., order] + 0.1 * rng.randn_like(x), training=False)


@pytest.mark.parametrize("purifier", ["diffpure", "hetero"])
def test_what_breaks_no_rule_runs(purifier):
    """An option of dp without the last clamp; and a purifier with a fixed permutation, and a random layer at rest."""
    scored = build(composed(f"purifier={purifier}", "purifier.clamp=none", "protocol.images=2")).arms["defended"].scored
    one = Subset(torch.tensor([0]), torch.rand(1, 1, 16, 16), torch.tensor([0]))
    sound = Defended(shuffled, None, scored.classifier)
    check_purifier(sound, one)
    assert dry_run(sound, one).draws


def test_a_loss_that_needs_more_classes_is_refused_before_the_attack():
    attack = make(composed("dataset=digits", "attack=strict")["attack"])
    attack.check_classes(10)
    with pytest.raises(ValueError, match="need 4 classes for loss=targeted"):
        attack.check_classes(3)
    with pytest.raises(ValueError, match="need 3 classes for the package's loss, got 2"):
        make(composed("dataset=digits", "attack=autoattack_upstream")["attack"]).check_classes(2)
    with pytest.raises(ValueError, match="need 3 classes for this attack's loss, got 2"):
        make(composed("attack=diffhammer", "attack.losses=[dlr]")["attack"]).check_classes(2)


def test_what_is_wrong_with_a_target_is_said(outside):
    with pytest.raises(ValueError, match=r"gain_of_the_tests\.haf \(did you mean half\?\)"):
        make({"_target_": "gain_of_the_tests.haf"}, modules=["gain_of_the_tests"])
    with pytest.raises(ValueError, match="there is no module gain_of_no_tests in the working folder"):
        make({"_target_": "gain_of_no_tests.half"}, modules=["gain_of_no_tests"])
