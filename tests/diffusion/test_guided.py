"""Guided steps, recomputed whole, against stored ones: equal bits, central differences, and flat memory."""

import functools

import pytest
import torch

from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.defense.memory import activation_bytes
from dp.diffusion.guided import guided_step
from dp.diffusion.sampling import to_01, to_pm1
from dp.purifiers.module import PurifierModule
from dp.rng import Streams
from tests.diffusion.test_checkpointing import (
    MEMORIES,
    NETS,
    ConvNet,
    Net,
    NormNet,
    build,
    image,
    loss_of,
    value_and_gradient,
    worst_relative_error,
)


def pull(z, x, n, network, sigma, evaluate):
    """The gradient in z of how far the denoised image is from z and from x, itself differentiable."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        z = z if z.requires_grad else z.detach().requires_grad_()
        x0 = evaluate(network, z + sigma * n, sigma)
        loss = (x0 - z).square().sum() + 0.3 * (x0 * x).cos().sum()
        return torch.autograd.grad(loss, z, create_graph=differentiable)[0]


def adam_step(z, m, v, x, n, network, sigma, evaluate, calls=1):
    """Adam on the state, as LM and ScoreOpt do; smooth, because the constant under the root is not small."""
    for _ in range(calls):
        g = pull(z, x, n, network, sigma, evaluate)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g.square()
        z = z - 0.1 * m / (v + 1e-2).sqrt()
    return z, m, v


def call(denoiser, z, sigma):
    return denoiser(z, sigma)


def guided(x, denoiser, classifier, rng, *, on_step=None, steps=4, calls=1, apply=guided_step):
    """Adam steps on an objective of the denoiser, each a unit that is recomputed."""
    x = to_pm1(x)
    z, m, v = x.clone(), torch.zeros_like(x), torch.zeros_like(x)
    for sigma in torch.linspace(0.9, 0.2, steps).tolist():
        step = functools.partial(adam_step, network=denoiser, sigma=sigma, evaluate=call, calls=calls)
        z, m, v = apply(denoiser, step, z, m, v, x, rng.randn_like(z))
    return to_01(z, "none")


def direct(network, step, *inputs):
    """The plain graph, without a unit."""
    return step(*inputs)


@pytest.mark.parametrize(("memory", "keep"), MEMORIES)
@pytest.mark.parametrize("net", NETS)
def test_gradient_equals_central_differences(net, memory, keep):
    denoiser = build(net, memory, keep)
    _, gradient = value_and_gradient(guided, denoiser)
    assert worst_relative_error(guided, denoiser, gradient) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("net", NETS)
def test_bits_are_equal_in_both_memory_modes_and_near_those_of_the_plain_graph(net, calls, dtype):
    purify = functools.partial(guided, calls=calls)
    stored, *others = (value_and_gradient(purify, build(net, *mode, dtype), dtype) for mode in MEMORIES)
    for other in others:
        assert all(map(torch.equal, other, stored))
    plain = value_and_gradient(functools.partial(purify, apply=direct), build(net, "store", 1, dtype), dtype)
    assert torch.equal(plain[0], stored[0])
    assert (plain[1] - stored[1]).abs().max() <= (1e-12 if dtype == torch.float64 else 1e-5) * plain[1].abs().max()
    assert stored[1].abs().min() > 0


@pytest.mark.parametrize(("keep", "calls"), [(1, 1), (2, 1), (4, 1), (9, 1), (1, 3), (3, 3), (6, 3), (12, 3)])
def test_nfe_counts_a_call_once_and_keep_counts_calls(keep, calls):
    """The newest steps of at most `keep` calls, and at least one step, are not computed again."""
    denoiser = build(ConvNet, "recompute", keep)
    value_and_gradient(functools.partial(guided, calls=calls), denoiser)
    kept = min(4, max(1, keep // calls))
    assert denoiser.nfe == 4 * calls
    assert denoiser.net.calls == 4 * calls + (4 - kept) * calls
    assert denoiser.memory == "recompute"


def test_memory_is_flat_in_the_number_of_steps():
    """Stored bytes after the forward pass, and live activations within the backward pass."""
    states = 8 * 2 * 36  # bytes of one image in float64
    stored, most, by_calls = {}, {}, {}
    for memory in ("store", "recompute"):
        for steps in (3, 12):
            purify, rng = functools.partial(guided, steps=steps), Streams([0], 0, "probe")
            calls = Defended(functools.partial(purify, apply=direct), build(NormNet, memory, 1), Classifier(Net()))
            by_calls[memory, steps] = activation_bytes(calls, image(lanes=1), rng)
            model = Defended(purify, build(NormNet, memory, 1), Classifier(Net()))
            stored[memory, steps] = activation_bytes(model, image(lanes=1), rng)
            fresh, leaf = build(NormNet, memory, 1), image(lanes=1).requires_grad_()
            Defended(purify, fresh, Classifier(Net()))(leaf, rng).sum().backward()
            most[memory, steps] = fresh.net.most
    assert stored["store", 12] > 3.5 * stored["store", 3]
    assert stored["recompute", 12] - stored["recompute", 3] <= 9 * 6 * states  # the inputs of nine steps and no more
    by_call = by_calls["recompute", 12] - by_calls["recompute", 3]  # where the network's calls alone are recomputed
    assert by_call > 2 * (stored["recompute", 12] - stored["recompute", 3])
    assert stored["recompute", 3] < 0.5 * stored["store", 3]
    assert (most["store", 3], most["store", 12]) == (3, 12)
    assert most["recompute", 3] == most["recompute", 12] == 1


def test_a_guided_defense_gives_the_attacker_its_exact_gradient():
    """Through `Defended`, with and without a gradient, with two samples of each image."""
    x, y, answers = image(), torch.tensor([0, 1]), []
    for memory in ("store", "recompute"):
        model = Defended(guided, build(NormNet, memory, 1), Classifier(Net()), draws_per_call=2)
        rng = functools.partial(Streams, range(2), 3, "attack")
        loss, gradient = model.loss_gradient(x, y, rng(), 2)
        with torch.no_grad():
            torch.testing.assert_close(model.loss(x, y, rng(), 2), loss)
        blunt = model.gradient_mode("bpda")
        torch.testing.assert_close(blunt.loss_gradient(x, y, rng(), 2)[0], loss)
        answers.append((loss, gradient, torch.tensor(model.nfe)))
    assert all(map(torch.equal, *answers))
    assert answers[0][2] == 4


def test_one_graph_is_differentiated_twice_and_no_higher_derivative_is_wrong():
    denoiser, leaf = build(NormNet, "recompute", 1), image().requires_grad_()
    loss = loss_of(guided, denoiser, leaf)
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    value_and_gradient(guided, denoiser)
    assert torch.equal(torch.autograd.grad(loss, leaf)[0], first)
    with pytest.raises(ValueError, match="memory=store"):
        torch.autograd.grad(loss_of(guided, denoiser, leaf), leaf, create_graph=True)


def test_one_tensor_constant_outputs_and_unused_inputs():
    def step(z, x, constant):
        return (z.square(), torch.ones_like(z), 2 * z) if constant else z.square()

    z, x = image().requires_grad_(), image().requires_grad_()
    denoiser = build(ConvNet, "recompute", 1)
    out = guided_step(denoiser, functools.partial(step, constant=False), z, x)
    assert torch.equal(torch.autograd.grad(out.sum(), z)[0], 2 * z)
    several = guided_step(denoiser, functools.partial(step, constant=True), z, x)
    found = torch.autograd.grad(torch.stack(several).sum(), (z, x), allow_unused=True)
    assert torch.equal(found[0], 2 + 2 * z)
    assert found[1] is None


class Energy(PurifierModule):
    """Langevin steps on an energy of its own network, without a denoiser."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.SiLU(), torch.nn.Conv2d(4, 1, 4))

    def down(self, z, x, n):
        g = pull(z, x, n, self, 0.1, lambda own, z, sigma: own.evaluate(own.net, z))
        return z - 0.1 * g + 0.01 * n

    def forward(self, x, denoiser, classifier, rng, *, on_step=None):
        z = x
        for _ in range(3):
            z = guided_step(self, self.down, z, x, rng.randn_like(z))
        return z


def test_a_purifier_with_a_network_of_its_own():
    x, y, answers = image(), torch.tensor([0, 1]), []
    for memory in ("store", "recompute"):
        own = Energy()
        model = Defended(own, None, Classifier(Net())).double()
        own.memory, own.recompute.keep = memory, 1
        answers.append((*model.loss_gradient(x, y, Streams(range(2), 0, "own"), 1), torch.tensor(model.nfe)))
        assert own.nfe == 3
    assert all(map(torch.equal, *answers))
