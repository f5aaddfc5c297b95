"""Compiled networks: gradients against plain ones, which calls are compiled, what they keep, what a run says of it.

The graph is torch.compile's own, cut into a forward and a backward pass as for a GPU; the kernels are the plain ones,
because a compiler takes minutes here. One test compiles a tiny network in earnest.
"""

import pytest
import torch
from torch import nn

from dp import compiled
from dp.compiled import KEEPS, Compiled, check_compiler, differentiated_once, plain_calls
from dp.defense.memory import activation_bytes
from dp.diffusion.denoisers import EDM
from dp.nets.edm_unet import SongUNet
from dp.objectives import margin
from dp.output.report import caveat_lines
from dp.rng import Streams
from dp.runs.build import build
from dp.runs.caveats import caveats_of
from dp.runs.keys import run_key
from dp.runs.validate import check_precision
from tests.helpers.compose import composed, setup

BACKEND, REAL = "aot_eager_decomp_partition", compiled.BACKEND
SMALL = ("protocol.images=2", "workers=1", "dataset.lanes=2", "dataset.draws_per_call=2", "memory=store")
WIDTH, COMPILE = 4, "compile=true"


@pytest.fixture(scope="module", autouse=True)
def backend():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "BACKEND", BACKEND)
        yield


@pytest.fixture(scope="module")
def unet():
    """A network with attention, its compiled twin, and an image for each lane."""
    torch.manual_seed(0)
    net = SongUNet(
        img_resolution=8,
        in_channels=3,
        out_channels=3,
        model_channels=16,
        num_blocks=1,
        channel_mult=[1],
        attn_resolutions=[],
    )
    net.eval().requires_grad_(False)
    for weights in net.parameters():
        torch.nn.init.normal_(weights, std=0.1)
    denoiser = EDM(net)
    denoiser.compiled = Compiled(net, [WIDTH])
    return EDM(net), denoiser, torch.randn(WIDTH, 3, 8, 8)


def value_and_gradient(denoiser, x):
    leaf = x.clone().requires_grad_()
    out = denoiser(leaf, 0.5)
    return out.detach(), torch.autograd.grad(out.square().sum(), leaf)[0]


def kept(denoiser, x):
    """Bytes for the backward pass, without weights."""
    own = {p.untyped_storage()._cdata for p in (*denoiser.parameters(), *denoiser.buffers())}
    tensors = {}

    def pack(saved):
        if saved.untyped_storage()._cdata not in own:
            tensors[saved.untyped_storage()._cdata] = saved.detach()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        denoiser(x.clone().requires_grad_(), 0.5)
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


def test_values_and_gradients_are_those_of_the_plain_network(unet):
    plain, twin, x = unet
    for one, other in zip(value_and_gradient(plain, x), value_and_gradient(twin, x), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(twin(x, 0.5), plain(x, 0.5), rtol=1e-5, atol=1e-6)
    assert KEEPS >= kept(twin, x) / kept(plain, x) > 1


def test_the_real_compiler_gives_the_plain_values(monkeypatch, tmp_path):
    """On the CPU, by g++: with a gradient and without. It is told to be deterministic, and CUDA graphs only without."""
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering

    lowered, run = [], GraphLowering.run

    def spied(graph, *args):
        lowered.append((config.deterministic, config.triton.cudagraphs))
        return run(graph, *args)

    monkeypatch.setattr(compiled, "BACKEND", REAL)
    monkeypatch.setattr(GraphLowering, "run", spied)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what is in the cache is not compiled
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
    plain, twin = net.requires_grad_(False), Compiled(net, [WIDTH])
    x = torch.randn(WIDTH, 3, 8, 8)
    values = []
    for call in (plain, twin, twin):
        leaf = x.clone().requires_grad_()
        out = call(leaf)
        values.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaf)))
        with torch.no_grad():
            values[-1] += (call(x),)
    assert lowered == [(True, False), (True, False), (True, True)]  # forward and backward pass; without a gradient
    for one, other, again in zip(*values, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
        assert torch.equal(other, again)


def test_a_call_of_another_width_is_the_plain_one(unet, monkeypatch):
    plain, twin, x = unet

    def never(*_):
        raise AssertionError("it was compiled")

    monkeypatch.setattr(twin.compiled, "differentiable", never)
    for one, other in zip(value_and_gradient(plain, x[:1]), value_and_gradient(twin, x[:1]), strict=True):
        assert torch.equal(one, other)
    with plain_calls():
        assert torch.equal(value_and_gradient(twin, x)[1], value_and_gradient(plain, x)[1])
    with pytest.raises(AssertionError):
        twin(x.clone().requires_grad_(), 0.5)


def test_a_second_derivative_is_refused_in_one_line(unet):
    _, twin, x = unet
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(twin(leaf, 0.5).square().sum(), leaf, create_graph=True)
    said = r"^need networks that are differentiated once .*: use that, or set compile=false$"
    with pytest.raises(ValueError, match=said), differentiated_once():
        torch.autograd.grad(first.square().sum(), leaf)


def test_a_network_that_cannot_be_compiled_is_refused_in_one_line():
    class Asks(torch.nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(ValueError, match=r"^need networks that torch.compile takes, got Asks.*set compile=false$") as e:
        Compiled(Asks(), [1])(torch.ones(1, 2))
    assert "\n" not in str(e.value)


def test_a_run_compiles_the_calls_of_its_attack():
    """In calls of two images by one or two samples; here the classifier's are differentiated."""
    one, other = (build(composed(*SMALL, "purifier=none", more)) for more in ("compile=false", COMPILE))
    models = [evaluation.arms["defended"].attacked for evaluation in (one, other)]
    x, y, rng = one.subset.x, torch.tensor([3, 5]), Streams([0, 1], 0, "test")
    (loss, plain), (same, twin) = (model.loss_gradient(x, y, rng, 2, margin) for model in models)
    torch.testing.assert_close(same, loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twin, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))
    made = models[1].classifier.compiled
    assert made is not None
    assert (made.widths, made.net) == ({2, 4}, models[1].classifier.net)
    assert models[0].classifier.compiled is None
    assert activation_bytes(models[1], x, rng) == activation_bytes(models[0], x, rng)  # one image is plain


def test_it_is_part_of_the_key_only_where_it_is_on():
    plain = composed(*SMALL)
    assert run_key(composed(*SMALL, "compile=false")) == run_key(plain)
    assert run_key({key: value for key, value in plain.items() if key != "compile"}) == run_key(plain)
    assert run_key(composed(*SMALL, COMPILE)) != run_key(plain)
    with pytest.raises(ValueError, match=r"^need compile true or false, got compile=max$"):
        check_precision(plain | {"compile": "max"})


def test_a_row_says_it():
    made = setup(*SMALL)
    facts = caveats_of(made, build(made.config)).as_data()
    said = [line for line in caveat_lines({**made.config, "compile": True}, facts) if "torch.compile" in line]
    assert len(said) == 1
    assert not any("compile" in line for line in caveat_lines(made.config, facts))


@pytest.mark.parametrize(("device", "need"), [("cpu", r"C\+\+ compiler"), ("cuda:0", "Triton")])
def test_without_a_compiler_a_line_says_what_to_do(device, need, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"^need (a )?{need} for compile=true.*: install.* or set compile=false$"):
        check_compiler(device)


@pytest.mark.parametrize("guide", ["true", "false"])
def test_mimics_own_gradient_is_the_same_stored_and_recomputed(guide):
    """Its guide differentiates the denoiser, also where the backward pass recomputes a step."""
    words = ("purifier=mimic", f"purifier.guide_through_network={guide}", "purifier.steps=4", "purifier.guided=[0,3]")
    found = []
    for memory in ("store", "recompute"):
        config = composed(*SMALL[:-1], *words, COMPILE, f"memory={memory}", "threat_model.grad=soft_sign")
        evaluation = build(config)
        model, images = evaluation.arms["defended"].attacked, evaluation.subset
        found.append(model.loss_gradient(images.x, images.y, Streams(images.ids, 0, "test"), 1, margin))
    for stored, again in zip(*found, strict=True):
        assert torch.allclose(stored, again, rtol=1e-4, atol=1e-6)
