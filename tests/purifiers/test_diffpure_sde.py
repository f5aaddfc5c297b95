"""The reverse SDE and the probability flow against closed forms, and our Euler-Maruyama against torchsde's."""

import math
from itertools import pairwise

import pytest
import torch

from dp.diffusion.brownian import Brownian
from dp.diffusion.denoisers import Gaussian
from dp.diffusion.sampling import vp_sigma
from dp.diffusion.vp_sde import VPSDE, fixed_times
from dp.purifiers import diffpure_ode, diffpure_sde
from dp.rng import Streams
from tests.helpers import affine

MEAN, STD, X = 0.1, 0.3, 0.52  # of the data in [-1,1]; the image in [0,1]
GIVEN = {"t": 0.1, "dt": 0.01, "end": 1e-5, "beta_min": 0.1, "beta_max": 20.0}
CLOCK = VPSDE(0.1, 20.0)


def abar(t: float) -> float:
    return math.exp(-9.95 * t**2 - 0.1 * t)


def start(t: float) -> tuple[float, float]:
    """Mean and standard deviation of the noisy state that purification starts from."""
    a = 1 / (1 + vp_sigma(t - 0.001) ** 2)
    return math.sqrt(a) * (2 * X - 1), math.sqrt(1 - a)


def moments(purify, calls: int, **given) -> tuple[float, float]:
    """Mean and variance of the last state in [-1,1]."""
    return affine.moments(purify, calls, X, Gaussian(MEAN, STD), **given)


def score(x: float, t: float) -> float:
    a = abar(t)
    return -(x - math.sqrt(a) * MEAN) / (a * STD**2 + 1 - a)


def posterior(t: float, end: float) -> tuple[float, float]:
    """Mean and variance that the exact reverse SDE has at `end`: for Gaussian data, p(x_end | x_t) averaged over the
    start.
    """
    a, a_end = abar(t), abar(end)
    v, v_end = a * STD**2 + 1 - a, a_end * STD**2 + 1 - a_end
    gain = math.sqrt(a / a_end) * v_end / v  # cov(x_end, x_t) = sqrt(a / a_end) v_end
    mu, std = start(t)
    mean = math.sqrt(a_end) * MEAN + gain * (mu - math.sqrt(a) * MEAN)
    return mean, gain**2 * std**2 + v_end - gain**2 * v


def flow(t: float, end: float) -> tuple[float, float]:
    """The same at the end of the exact probability flow, which keeps the quantiles."""
    a, a_end = abar(t), abar(end)
    gain = math.sqrt((a_end * STD**2 + 1 - a_end) / (a * STD**2 + 1 - a))
    mu, std = start(t)
    return math.sqrt(a_end) * MEAN + gain * (mu - math.sqrt(a) * MEAN), (gain * std) ** 2


def test_euler_maruyama_has_its_own_exact_moments():
    times = [0.1, 0.09, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01, 1e-5]
    mean, std = start(0.1)
    variance = std**2
    for t, t_next in pairwise(times):
        h, beta, a = t - t_next, 0.1 + 19.9 * t, abar(t)
        gain = 1 + h * beta * (0.5 - 1 / (a * STD**2 + 1 - a))
        mean = gain * mean + h * beta * math.sqrt(a) * MEAN / (a * STD**2 + 1 - a)
        variance = gain**2 * variance + h * beta
    assert moments(diffpure_sde.purify, 11, **GIVEN) == pytest.approx((mean, variance), abs=1e-12)


def test_euler_flow_has_its_own_exact_moments():
    mean, std = start(0.1)
    for t, t_next in pairwise(fixed_times(0.1, 1e-5, 0.01)):
        beta = 0.1 + 19.9 * t
        mean, above = (x + (t - t_next) * beta * (x + score(x, t)) / 2 for x in (mean, mean + std))
        std = above - mean
    assert moments(diffpure_ode.purify, 1, **GIVEN) == pytest.approx((mean, std**2), abs=1e-12)


@pytest.mark.parametrize(
    ("purify", "solver", "exact", "order"),
    [
        (diffpure_sde.purify, "own", posterior, 1),
        (diffpure_ode.purify, "euler", flow, 1),
        (diffpure_ode.purify, "heun", flow, 2),
    ],
)
def test_order_of_convergence(purify, solver, exact, order):
    """Halving the step divides the error of mean and variance by 2^order."""
    t, end = 0.2, 0.02  # away from time 0, where score-based steps lose their order
    wanted, errors = torch.tensor(exact(t, end)), []
    for steps in (36, 72, 144):
        calls = steps + 1 if solver == "own" else 1
        given = {**GIVEN, "t": t, "end": end, "dt": (t - end) / steps, "solver": solver}
        errors.append((torch.tensor(moments(purify, calls, **given)) - wanted).abs())
    for coarse, fine in pairwise(errors):
        assert torch.all((coarse / fine).log2().sub(order).abs() < 0.2), (errors, coarse / fine)
    assert errors[-1].max() < (2e-3 if order == 1 else 2e-5)


@pytest.mark.parametrize("solver", ["torchsde", "adjoint"])
@pytest.mark.parametrize(("end", "dt"), [(1e-5, 0.01), (0.01, 0.01), (0.013, 0.007)])
def test_our_steps_are_torchsdes(solver, end, dt):
    """The same path, to rounding; of sdeint the gradient too."""
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(0.4).add(0.3)
    found = {}
    for name in ("own", solver):
        leaf, given = x.clone().requires_grad_(), {**GIVEN, "end": end, "dt": dt, "solver": name}
        out = diffpure_sde.purify(leaf, Gaussian(MEAN, STD), None, Streams([4, 5, 6], 0, "a"), **given)
        (gradient,) = torch.autograd.grad(out.square().sum(), leaf)
        found[name] = out.detach(), gradient
    torch.testing.assert_close(found[solver][0], found["own"][0], rtol=0, atol=1e-10)
    if solver == "torchsde":
        torch.testing.assert_close(found[solver][1], found["own"][1], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("purify", "exact"), [(diffpure_sde.purify, "own"), (diffpure_ode.purify, "euler")])
def test_adjoint_gradient_tends_to_the_exact_one(purify, exact):
    """Away from time 0 it is right to first order in the step; down to 1e-5 it is not."""
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(0.4).add(0.3)

    def error(end: float, dt: float) -> float:
        gradients = []
        for solver in (exact, "adjoint"):
            leaf, given = x.clone().requires_grad_(), {**GIVEN, "end": end, "dt": dt, "solver": solver}
            out = purify(leaf, Gaussian(MEAN, STD), None, Streams([4, 5], 0, "a"), **given)
            gradients.append(torch.autograd.grad(out.square().sum(), leaf)[0])
        return ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item()

    coarse, fine = error(0.05, 0.002), error(0.05, 0.001)
    assert fine < 0.05
    assert 1.8 < coarse / fine < 2.2
    assert error(1e-5, 0.01) > error(0.05, 0.01)


def test_adjoint_gradients_do_not_depend_on_the_batch():
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(0.4).add(0.3)
    for purify in (diffpure_sde.purify, diffpure_ode.purify):
        gradients = []
        for index in ([0, 1, 2], [2, 0]):
            leaf, streams = x[index].requires_grad_(), Streams([[7, 8, 9][i] for i in index], 0, "a")
            out = purify(leaf, Gaussian(MEAN, STD), None, streams, **GIVEN, solver="adjoint")
            gradients.append(torch.autograd.grad(out.square().sum(), leaf)[0])
        torch.testing.assert_close(gradients[0][[2, 0]], gradients[1], rtol=1e-12, atol=0)


def test_a_path_is_one_path():
    """Increments add up, in any order of queries; each image has its own path; those of the grid come from the plain
    stream.
    """
    grid, between, like = [0.0, 0.3, 0.6, 1.0], [0.1, 0.2, 0.3, 0.7, 1.0], torch.zeros(2, 5, dtype=torch.float64)
    path = Brownian(Streams([1, 2], 0, "a"), like, grid, between)
    assert path.times == [0.0, 0.1, 0.2, 0.3, 0.6, 0.7, 1.0]
    rng = Streams([1, 2], 0, "a")
    for a, b in pairwise(grid):
        torch.testing.assert_close(path(a, b), math.sqrt(b - a) * rng.randn_like(like))
    torch.testing.assert_close(path(0.1, 0.7), path(0.1, 0.2) + path(0.2, 0.6) + path(0.6, 0.7))
    assert torch.equal(path(torch.tensor(0.2, dtype=torch.float64), 1.0), path(0.2, 1.0))
    assert torch.equal(path(0.2, 0.2), torch.zeros_like(like))
    other = Brownian(Streams([2], 0, "a"), like[:1], grid, between)
    assert torch.equal(other(0.1, 1.0), path(0.1, 1.0)[1:])
    with pytest.raises(ValueError, match="need a time that the path was made with"):
        path(0.0, 0.55)
    with pytest.raises(ValueError, match="rising"):
        Brownian(Streams([1, 2], 0, "a"), like, [0.0, 0.0])


def test_a_bridged_path_is_brownian():
    """Variance and independence of increments on the joined grid, 40000 samples."""
    path = Brownian(Streams(range(4), 0, "a"), torch.zeros(4, 10000).double(), [0.0, 0.5, 1.0], [0.1, 0.2, 0.7])
    times = path.times
    increments = torch.stack([path(a, b).flatten() / math.sqrt(b - a) for a, b in pairwise(times)])
    torch.testing.assert_close(torch.cov(increments), torch.eye(5).double(), rtol=0, atol=0.03)


def test_grids():
    assert len(fixed_times(0.1, 1e-5, 1e-3)) - 1 == 100  # the original's NFE
    assert fixed_times(0.1, 1e-5, 1e-3)[-3:] == [0.002, 0.001, 1e-5]
    assert fixed_times(0.1, 0.04, 0.02) == [0.1, 0.08, 0.06, 0.04]
    assert fixed_times(0.04, 0.1, 0.04) == [0.04, 0.08, 0.1]
    assert CLOCK.sigma(0.2) == pytest.approx(math.sqrt(1 / abar(0.2) - 1))


@pytest.mark.parametrize("purify", [diffpure_sde.purify, diffpure_ode.purify])
@pytest.mark.parametrize("wrong", [{"t": 1.5}, {"end": 0.0}, {"end": 0.2}, {"dt": 0.0}, {"solver": "magic"}])
def test_wrong_values(purify, wrong):
    with pytest.raises(ValueError, match="need "):
        purify(torch.zeros(1, 1, 2, 2), Gaussian(), None, Streams([0], 0, "a"), **{**GIVEN, **wrong})


@pytest.mark.parametrize(("purify", "solver"), [(diffpure_sde.purify, "own"), (diffpure_ode.purify, "heun")])
def test_on_step_sees_every_step(purify, solver):
    seen, model, x = [], Gaussian(MEAN, STD), torch.full((1, 1, 2, 2), X)
    purify(x, model, None, Streams([0], 0, "a"), **GIVEN, solver=solver, on_step=lambda *step: seen.append(step))
    times = fixed_times(0.1, 1e-5, 0.01)[:-1]
    assert [i for i, *_ in seen] == list(range(10))
    assert [sigma for _, sigma, _, _ in seen] == [CLOCK.sigma(t) for t in times]
    for _, sigma, z, x0 in seen:
        torch.testing.assert_close(model.denoise(z, sigma), x0)
    assert model.nfe == (20 if solver == "heun" else 10)
