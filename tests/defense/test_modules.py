"""Purifiers with weights of their own, gradient variants with a target of their own, purifiers without a denoiser."""

import copy
import functools

import pytest
import torch
from torch import nn

from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.defense.memory import activation_bytes
from dp.diffusion.denoisers import Gaussian
from dp.objectives import margin
from dp.purifiers import none
from dp.purifiers.module import PurifierModule
from dp.rng import Streams


class Smoother(PurifierModule):
    """Adds what a small network makes of the noised image; with a denoiser, one call of it on top."""

    def __init__(self, width: int = 4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.Tanh(), nn.Conv2d(width, 1, 3, padding=1))
        for parameter in self.net.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)

    def forward(self, x, denoiser, classifier, rng, *, on_step=None, strength=0.5):
        noised = x + 0.1 * rng.randn_like(x)
        out = x + strength * torch.tanh(self.evaluate(self.net, noised))
        return out if denoiser is None else 0.5 * out + 0.1 * denoiser(out, 0.5)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(64, 3, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        return torch.tanh(x.flatten(1)) @ self.w


def flat(x, denoiser, classifier, rng, *, on_step=None, level=0.0):
    """Another purifier: half of the image."""
    return 0.5 * x + level


def images() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(3)


def rng() -> Streams:
    return Streams(range(3), 0, "test")


PURIFIERS = {
    "bare": lambda: Smoother(),
    "bound": lambda: functools.partial(Smoother(), strength=0.4),
    "bound twice": lambda: functools.partial(functools.partial(Smoother(), strength=0.4), strength=0.3),
}


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("denoiser", [None, Gaussian()])
@pytest.mark.parametrize("kind", PURIFIERS)
def test_gradient_against_central_differences(kind, denoiser, memory):
    model = Defended(PURIFIERS[kind](), denoiser, Classifier(Net()), draws_per_call=2).double()
    model.own_network.memory = memory
    x, y = images()
    x, h = x.double(), 1e-5
    _, gradient = model.loss_gradient(x, y, rng(), 3, margin)
    assert gradient.dtype == torch.float64
    for seed in range(3):
        way = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            up, down = (model.loss(x + s * h * way, y, rng(), 3, margin) for s in (1, -1))
        slope = (gradient * way).flatten(1).sum(dim=1)
        torch.testing.assert_close((up - down) / (2 * h), slope, rtol=1e-5, atol=1e-9)


def test_recomputing_gives_the_same_bits_as_storing():
    x, y = images()
    found = []
    for memory in ("store", "recompute"):
        model = Defended(Smoother(), None, Classifier(Net()), draws_per_call=2)
        model.own_network.memory = memory
        found.append((*model.loss_gradient(x, y, rng(), 5, margin), model.nfe))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2] == 1  # what is recomputed is not counted again


@pytest.mark.parametrize("kind", PURIFIERS)
def test_weights_belong_to_the_defense(kind):
    model = Defended(PURIFIERS[kind](), None, Classifier(Net()))
    own = model.own_network
    assert own is not None
    weights = {id(p) for p in own.parameters()}
    assert len(weights) == 4
    assert weights <= {id(p) for p in model.parameters()}
    assert len(model.state_dict()) == 4 + len(model.classifier.state_dict())
    twin = copy.deepcopy(model).double()
    assert {p.dtype for p in twin.own_network.parameters()} == {torch.float64}
    assert {p.dtype for p in own.parameters()} == {torch.float32}
    x, _ = images()
    with torch.no_grad():
        before = model.purify(x, rng())
        torch.testing.assert_close(twin.purify(x.double(), rng()), before.double(), rtol=1e-5, atol=1e-6)
        for parameter in twin.own_network.parameters():
            parameter.zero_()  # the copy's network is its own
        assert torch.equal(model.purify(x, rng()), before)
        assert torch.equal(twin.purify(x.double(), rng()), x.double())


def test_own_weights_take_no_activation_memory():
    x, _ = images()
    model = Defended(Smoother(width=512), None, Classifier(Net()))
    grown = activation_bytes(model, x, rng())
    saved = 4 * 64 * (1 + 512 + 1 + 1 + 1 + 1)  # float32 planes of 8 x 8 that the layers must keep, within a few
    assert 4 * 64 * 512 <= grown <= saved + 4 * 64 * 8
    assert sum(4 * p.numel() for p in model.own_network.parameters()) > 4 * 64 * 100  # they would be seen


def test_own_evaluations_are_counted():
    x, _ = images()
    for denoiser, nfe in ((None, 1), (Gaussian(), 2)):
        model = Defended(functools.partial(Smoother(), strength=0.1), denoiser, Classifier(Net()), draws_per_call=2)
        model.logits(x, rng(), 4)
        assert model.nfe == nfe


def test_variants_have_any_name_and_may_be_purifiers():
    x, y = images()
    network = Smoother()
    variants = {"weaker": {"strength": 0.1}, "half": functools.partial(flat, level=0.2), "my.own": network}
    model = Defended(functools.partial(Smoother(), strength=0.5), None, Classifier(Net()), variants=variants)
    assert {id(p) for p in network.parameters()} <= {id(p) for p in model.parameters()}
    half = model.gradient_mode("half")
    assert torch.equal(half.purify(x, rng()), flat(x, None, None, None, level=0.2))
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(margin(model.classifier(0.5 * leaf + 0.2), y).sum(), leaf)
    torch.testing.assert_close(half.loss_gradient(x, y, rng(), 3, margin)[1], expected)
    weaker = model.gradient_mode("weaker").purify(x, rng())
    assert torch.equal(weaker, model.purifier.func(x, None, None, rng(), strength=0.1))
    assert not torch.equal(weaker, model.purify(x, rng()))
    assert torch.equal(model.gradient_mode("my.own").purify(x, rng()), network(x, None, None, rng()))
    assert torch.equal(model.gradient_modes(("half", "bpda")).purify(x, rng()), half.purify(x, rng()))
    assert model.gradient_modes(()) is model


def test_without_a_denoiser_only_blind_is_the_bare_classifier():
    x, _ = images()
    model = Defended(flat, None, Classifier(Net()), variants={"up": {"level": 0.1}, "empty": {}})
    assert not model.undefended
    assert torch.equal(model.gradient_mode("up").purify(x, rng()), 0.5 * x + 0.1)
    bpda = model.gradient_mode("bpda")
    assert torch.equal(bpda.purify(x, rng()), model.purify(x, rng()))
    leaf = x.clone().requires_grad_()
    (identity,) = torch.autograd.grad(bpda.purify(leaf, rng()).sum(), leaf)
    assert torch.equal(identity, torch.ones_like(x))
    for name in ("surrogate", "empty"):
        with pytest.raises(ValueError, match=f"need a gradient variant {name}"):
            model.gradient_mode(name)
    blind = model.gradient_mode("blind")
    assert blind.undefended
    assert torch.equal(blind.purify(x, rng()), x)
    bare = Defended(functools.partial(none.purify), None, Classifier(Net()))
    assert bare.gradient_mode("surrogate").undefended
