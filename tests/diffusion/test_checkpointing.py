"""Checkpointed calls against plain ones: equal bits, derivatives of first and second order, and bounded memory."""

import functools
import weakref
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.diffusion.denoisers import EDM, EpsNet
from dp.diffusion.sampling import ancestral_step, renoise, to_01, to_pm1
from dp.rng import Streams

SIGMAS = (0.9, 0.5, 0.2, 0.0)  # three steps


class ConvNet(nn.Module):
    """Two convolutions with a smooth activation; remembers weakly what autograd stored for it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.calls, self.activations, self.most = 0, [], 0

    def middle(self, h):
        return torch.tanh(h)

    def forward(self, x, label):
        self.calls += 1
        h = self.middle(self.first(x) + 0.1 * label.view(-1, 1, 1, 1))
        if h.requires_grad:
            self.activations.append(weakref.ref(h))
            self.most = max(self.most, self.live())
        return self.last(h)

    def live(self):
        return sum(activation() is not None for activation in self.activations)


class NormNet(ConvNet):
    """GroupNorm and SiLU: autograd has other formulas for their gradients where these will be differentiated."""

    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)

    def middle(self, h):
        return nn.functional.silu(self.norm(h)) + h


NETS = [ConvNet, NormNet]
MEMORIES = [("store", 1), ("recompute", 1), ("recompute", 2), ("recompute", 99)]


def quadratic(x0, y):
    return [(x0 - y).square().sum()]


def linear(x0, y):
    """The cotangent of this guide is a constant: only the network makes its gradient depend on the image."""
    weight = torch.linspace(-1, 1, x0.numel(), dtype=x0.dtype).view_as(x0)
    return [(weight * x0).sum()]


def two_guides(x0, y):
    """As in MimicDiffusion: two losses of one denoised image, differentiated one after the other."""
    small = [nn.functional.avg_pool2d(image, 2) for image in (x0, y)]
    return [(x0 - y).square().sum(), (small[0] - small[1]).cos().sum()]


GUIDES = [quadratic, linear, two_guides]


def guided(x, denoiser, classifier, rng, *, on_step=None, guide=quadratic, scale=0.3, chain=False):
    """A toy of GDMP and MimicDiffusion: each step is pulled against the gradient of a loss of the denoised image.

    `chain`: the guide is differentiated in the first state, so through all calls so far.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        y = to_pm1(x)
        z = first = renoise(y, 0.0, SIGMAS[0], rng.randn_like(y)).requires_grad_()
        for sigma, sigma_next in pairwise(SIGMAS):
            z = z if z.requires_grad else z.detach().requires_grad_()
            x0 = denoiser(z, sigma)
            n = rng.randn_like(z) if sigma_next else None
            moved = ancestral_step(z, x0, sigma, sigma_next, n, eta=1.0)
            if not chain or not sigma_next:
                for loss in guide(x0, y):
                    (g,) = torch.autograd.grad(
                        loss, first if chain else z, create_graph=differentiable, retain_graph=True
                    )
                    moved = moved - scale * g
            z = moved
            if not differentiable and not chain:
                z = z.detach()
    return to_01(z if differentiable else z.detach(), "none")


def plain(x, denoiser, classifier, rng, *, on_step=None):
    """The same chain without guidance: first derivatives alone."""
    z = renoise(to_pm1(x), 0.0, SIGMAS[0], rng.randn_like(x))
    for sigma, sigma_next in pairwise(SIGMAS):
        z = ancestral_step(z, denoiser(z, sigma), sigma, sigma_next, rng.randn_like(z), eta=1.0)
    return to_01(z, "none")


def build(net, memory, keep, dtype=torch.float64, adapter=EDM):
    torch.manual_seed(0)
    denoiser = adapter(net(), memory=memory).to(dtype)
    denoiser.recompute.keep = keep
    return denoiser


def image(lanes=2, dtype=torch.float64):
    return torch.rand(lanes, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)


def loss_of(purify, denoiser, x):
    """A scalar of the purified image that weighs its pixels differently."""
    x_hat = purify(x, denoiser, None, Streams(range(len(x)), 0, "frozen"))
    return (torch.linspace(0.5, 1.5, x_hat.numel(), dtype=x.dtype).view_as(x_hat) * x_hat.square()).sum()


def value_and_gradient(purify, denoiser, dtype=torch.float64):
    leaf = image(dtype=dtype).requires_grad_()
    loss = loss_of(purify, denoiser, leaf)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def worst_relative_error(purify, denoiser, gradient, h=1e-5):
    """Of gradient.v against central differences in float64, over random directions v."""
    x, generator, worst = image(), torch.Generator().manual_seed(2), 0.0
    for _ in range(3):
        v = torch.randn(x.shape, generator=generator, dtype=x.dtype) + 3 * gradient / gradient.norm()
        with torch.no_grad():
            difference = loss_of(purify, denoiser, x + h * v) - loss_of(purify, denoiser, x - h * v)
        slope = (gradient * v).sum().item()
        worst = max(worst, abs(difference.item() / (2 * h) - slope) / abs(slope))
    return worst


@pytest.mark.parametrize(("memory", "keep"), MEMORIES)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("net", NETS)
def test_the_gradient_of_a_guided_purifier_equals_central_differences(net, guide, memory, keep):
    purify, denoiser = functools.partial(guided, guide=guide), build(net, memory, keep)
    _, gradient = value_and_gradient(purify, denoiser)
    assert worst_relative_error(purify, denoiser, gradient) < 1e-5
    constant = functools.partial(guided_as_a_constant, guide=guide)
    _, other = value_and_gradient(constant, denoiser)  # the check sees a gradient that leaves the second order out
    assert worst_relative_error(purify, denoiser, other) > 1e-3


def guided_as_a_constant(x, denoiser, classifier, rng, *, guide):
    """The value of `guided`, and the gradient of someone who takes each pull for a constant."""
    y = to_pm1(x)
    z = renoise(y, 0.0, SIGMAS[0], rng.randn_like(y))
    for sigma, sigma_next in pairwise(SIGMAS):
        x0, leaf = denoiser(z, sigma), z.detach().requires_grad_()
        z = ancestral_step(z, x0, sigma, sigma_next, rng.randn_like(z) if sigma_next else None, eta=1.0)
        for loss in guide(denoiser(leaf, sigma), y.detach()):
            z = z - 0.3 * torch.autograd.grad(loss, leaf, retain_graph=True)[0]
    return to_01(z, "none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("net", NETS)
def test_a_guided_purifier_has_the_same_bits_in_both_memory_modes(net, guide, chain, dtype):
    purify = functools.partial(guided, guide=guide, chain=chain)
    for adapter in (EDM, EpsNet):
        stored, *others = (
            value_and_gradient(purify, build(net, memory, keep, dtype, adapter), dtype) for memory, keep in MEMORIES
        )
        assert stored[1].abs().min() > 0
        for other in others:
            assert torch.equal(other[0], stored[0])
            assert torch.equal(other[1], stored[1])


@pytest.mark.parametrize("net", NETS)
def test_a_chain_without_guidance_has_the_same_bits_and_the_same_number_of_calls(net):
    stored = value_and_gradient(plain, build(net, "store", 1))
    for keep, calls in ((1, 5), (2, 4), (99, 3)):  # three, and one more for each call that was not kept
        denoiser = build(net, "recompute", keep)
        assert all(map(torch.equal, value_and_gradient(plain, denoiser), stored))
        assert (denoiser.net.calls, denoiser.nfe) == (calls, 3)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("keep", [1, 99])
def test_torchs_own_check_of_first_and_second_derivatives(net, keep):
    denoiser, z = build(net, "recompute", keep), image(lanes=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: denoiser(denoiser(z, 0.9), 0.5), (z,))
    assert torch.autograd.gradgradcheck(lambda z: denoiser(denoiser(z, 0.9), 0.5), (z,))


@pytest.mark.parametrize("keep", [1, 2, 99])
def test_one_graph_is_differentiated_twice(keep):
    """Also where another chain ran between, or where the first pass asked for a part of the graph alone."""
    denoiser, leaf = build(NormNet, "recompute", keep), image().requires_grad_()
    _, expected = value_and_gradient(guided, build(NormNet, "store", 1))
    loss = loss_of(guided, denoiser, leaf)
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    value_and_gradient(guided, denoiser)
    (again,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)

    z, weight = image().requires_grad_(), torch.ones(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(denoiser(z, 0.5), z, weight, create_graph=True)
    torch.autograd.grad(g.sum(), weight, retain_graph=True)  # never reaches the call itself
    (found,) = torch.autograd.grad(g.square().sum(), z)
    plain_denoiser = build(NormNet, "store", 1)
    (g,) = torch.autograd.grad(plain_denoiser(z, 0.5), z, weight, create_graph=True)
    assert torch.equal(found, torch.autograd.grad(g.square().sum(), z)[0])


def test_a_third_derivative_is_refused_not_wrong():
    for memory in ("store", "recompute"):
        denoiser, z = build(ConvNet, memory, 2), image().requires_grad_()
        (g,) = torch.autograd.grad(denoiser(z, 0.5).square().sum(), z, create_graph=True)
        if memory == "store":
            torch.autograd.grad(g.square().sum(), z, create_graph=True)
        else:
            with pytest.raises(ValueError, match="memory=store"):
                torch.autograd.grad(g.square().sum(), z, create_graph=True)


@pytest.mark.parametrize("keep", [1, 2])
def test_live_activations_do_not_grow_with_the_chain(keep):
    counts = {}
    for memory in ("store", "recompute"):
        for calls in (4, 12):
            denoiser, z = build(ConvNet, memory, keep), image().requires_grad_()
            for _ in range(calls):
                z = denoiser(z, 0.5)
            counts[memory, calls] = denoiser.net.live()
            z.sum().backward()
            assert denoiser.net.live() == 0 or memory == "store"
    assert counts == {("store", 4): 4, ("store", 12): 12, ("recompute", 4): keep, ("recompute", 12): keep}


@pytest.mark.parametrize(("chain", "peak"), [(False, 1), (True, 3)])
def test_live_activations_of_a_guided_chain_do_not_grow_in_the_forward_pass(chain, peak):
    """Nor in the backward pass, unless a guide is differentiated through several calls: these then wait together."""
    purify = functools.partial(guided, chain=chain)
    live, most = {}, {}
    for memory in ("store", "recompute"):
        denoiser, leaf = build(NormNet, memory, 1), image().requires_grad_()
        loss = loss_of(purify, denoiser, leaf)
        live[memory] = denoiser.net.live()
        loss.backward()
        most[memory] = denoiser.net.most
    assert live == {"store": 3, "recompute": 1}
    assert most == {"store": 3, "recompute": peak}


class Net(nn.Module):
    """Two logits of an image."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.square().flatten(1).cumsum(1)
        return total[:, [20, -1]]


@pytest.mark.parametrize(("memory", "keep"), MEMORIES)
def test_a_guided_defense_gives_the_attacker_its_exact_gradient(memory, keep):
    """Through `Defended`, with two samples of each image: equal bits, and central differences of the mean loss."""
    denoiser, x, y = build(NormNet, memory, keep), image(), torch.tensor([0, 1])
    model = Defended(guided, denoiser, Classifier(Net()), draws_per_call=2)
    ask = Defended(guided, build(NormNet, "store", 1), Classifier(Net()), draws_per_call=2)
    rng = functools.partial(Streams, range(2), 3, "attack")
    loss, gradient = model.loss_gradient(x, y, rng(), 2)
    expected = ask.loss_gradient(x, y, rng(), 2)
    assert torch.equal(loss, expected[0])
    assert torch.equal(gradient, expected[1])
    assert model.nfe == 3
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=x.dtype)
    with torch.no_grad():
        up, down = (model.loss(x + h * v, y, rng(), 2).sum().item() for h in (1e-5, -1e-5))
    slope = (gradient * v).sum().item()
    assert abs((up - down) / 2e-5 - slope) < 1e-5 * abs(slope)
