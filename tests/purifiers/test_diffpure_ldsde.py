"""LDSDE against a run of its authors' code, against closed forms, and its exact gradient against the adjoint's."""

import functools
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from dp.diffusion.denoisers import VP, Denoiser, EpsNet, Gaussian
from dp.diffusion.sampling import to_01, to_pm1
from dp.purifiers import diffpure_ldsde
from dp.rng import Streams
from tests.helpers import parity
from tests.helpers.affine import moments

TOLERANCE = 1e-5  # of the largest entry
LAM, SIGMA2, ETA, SCORE_T = 0.01, 0.001, 5.0, 0.01
GIVEN = {"t": 0.1, "dt": 0.01, "end": 1e-5, "lam": LAM, "sigma2": SIGMA2, "eta": ETA, "score_t": SCORE_T}
GIVEN |= {"beta_min": 0.1, "beta_max": 20.0}
SIZES = [0.01] * 9 + [0.01 - 1e-5]


@functools.cache
def recorded(path):
    return parity.Recorded(path)


def purified(file, x, solver="own"):
    """The file's purification, and its network evaluations. A network of integer labels is asked at index 10, the one
    in continuous time at 9.99. The adjoint draws further noise for its way back, which is zero here. The original
    returns the states after all repeats, joined.
    """
    s, repeats, found, nfe = file.settings, file.settings.get("repeats", 1), [], 0
    draws = file["draws"].unflatten(0, (repeats, -1))
    if solver == "adjoint":
        draws = torch.cat([draws.flatten(3), torch.zeros_like(draws[:, 1:]).flatten(3)], dim=1)
    given = {**GIVEN, "t": s["t"] / 1000, "dt": s["dt"], "lam": s["lam"], "sigma2": s["sigma2"], "eta": s["eta"]}
    for done in range(1, repeats + 1):
        rng = parity.Script(draws[:done].flatten(0, 1))
        denoiser = file.denoiser() if s["score"] == "score_sde" else EpsNet(file.eps())
        x_hat = diffpure_ldsde.purify(x, denoiser, None, rng, clamp="none", solver=solver, repeats=done, **given)
        assert rng.left == 0
        found.append(x_hat)
        nfe = denoiser.nfe
    return torch.cat(found), nfe


@parity.of("ldsde")
@pytest.mark.parametrize("solver", ["own", "adjoint"])
def test_image_is_the_originals(path, solver):
    file = recorded(path)
    x_hat, nfe = purified(file, file["x"], solver)
    assert (x_hat - file["x_hat"]).abs().max() <= TOLERANCE * file["x_hat"].abs().max()
    assert nfe == len(file["draws"]) + file.settings.get("repeats", 1) * (solver == "adjoint")


@parity.of("ldsde")
def test_gradient_is_the_originals_without_its_adjoint(path):
    file, gradients = recorded(path), {}
    for solver in ("own", "adjoint"):
        x = file["x"].clone().requires_grad_()
        (gradients[solver],) = torch.autograd.grad((file["w"] * purified(file, x, solver)[0]).sum(), x)
    largest = file["grad_w"].abs().max()
    assert (gradients["own"] - file["grad_w"]).abs().max() <= TOLERANCE * largest
    assert (gradients["adjoint"] - file["grad_w"]).abs().max() > 0.1 * largest


class Identity(Denoiser):
    """A denoiser whose score is zero everywhere."""

    def denoise(self, z, sigma):
        return z


@pytest.mark.parametrize(("solver", "slope"), [("own", 1.0), ("adjoint", 0.5988)])
def test_the_adjoint_loses_the_path_through_the_pull(solver, slope):
    """With a zero score the result is x plus noise, so that its derivative is 1. The adjoint sees only the first state,
    which the pull to x forgets: .95 a step.
    """
    x = torch.full((2, 1, 3, 3), 0.4, dtype=torch.float64, requires_grad=True)
    rng = Streams([0, 1], 0, "adv")
    out = diffpure_ldsde.purify(x, Identity(nn.Identity()), None, rng, clamp="none", solver=solver, **GIVEN)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(gradient, slope), rtol=0, atol=5e-5)
    forgotten = math.prod(1 - size * LAM / 2 / SIGMA2 for size in SIZES)
    assert forgotten == pytest.approx(0.95**10, abs=1e-4)
    assert gradient[0, 0, 0, 0].item() == pytest.approx(1.0 if solver == "own" else forgotten, abs=1e-10)


def test_both_solvers_walk_the_same_path():
    x, ids = torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), [4, 5, 6]
    own, adjoint = (
        diffpure_ldsde.purify(x, Gaussian(0.1, 0.3), None, Streams(ids, 0, "adv"), solver=solver, **GIVEN)
        for solver in ("own", "adjoint")
    )
    torch.testing.assert_close(own, adjoint, rtol=0, atol=1e-12)
    assert (own - x).abs().max() > 0.01


def test_gaussian_data_have_a_closed_form():
    """The score of N(mean, std^2) at the level where it is asked, written in the papers' own state."""
    mean0, std0, x = 0.1, 0.3, 0.52
    level = Gaussian().sigma(SCORE_T)  # of the denoiser's clock; the predicted noise is divided by that of the SDE
    a, a_sde = 1 / (1 + level**2), math.exp(-9.95 * SCORE_T**2 - 0.1 * SCORE_T)
    gain = math.sqrt(1 - a) / (a * std0**2 + 1 - a) / math.sqrt(1 - a_sde)  # score(v) = -gain (v - sqrt(a) mean0)
    x_in = 2 * x - 1
    mean, variance = x_in, 0.0
    for size in SIZES:
        pull, push = size * LAM / 2 / SIGMA2, size * LAM / 2 * gain
        mean = (1 - pull - push) * mean + pull * x_in + push * math.sqrt(a) * mean0
        variance = (1 - pull - push) ** 2 * variance + ETA**2 * LAM * size
    found = moments(diffpure_ldsde.purify, 10, x, Gaussian(mean0, std0), clamp="none", **GIVEN)
    assert found == pytest.approx((mean, variance), rel=1e-9)


@pytest.mark.parametrize("solver", ["own", "adjoint"])
def test_repeats_go_on_around_the_first_image(solver):
    """With a zero score the mean is x, and the variance is that of the steps of all repeats."""
    x, denoiser = torch.full((64, 1, 8, 8), 0.4, dtype=torch.float64), Identity(nn.Identity())
    given, rng = {**GIVEN, "t": 0.02}, Streams(range(64), 0, "adv")
    out = diffpure_ldsde.purify(x, denoiser, None, rng, clamp="none", solver=solver, repeats=3, **given)
    variance = 0.0
    for size in 3 * [0.01, 0.01 - 1e-5]:
        variance = (1 - size * LAM / 2 / SIGMA2) ** 2 * variance + ETA**2 * LAM * size
    assert denoiser.nfe == 3 * (2 + (solver == "adjoint"))
    assert (2 * (out - x)).var().item() == pytest.approx(variance, rel=0.1)
    assert (out - x).mean().abs().item() < 5 * math.sqrt(variance / out.numel())


def test_with_a_clock_in_continuous_time_the_score_is_that_of_the_data():
    """The network of score-SDE is asked at label 9.99; then the noise of the clock and that of the SDE are one."""
    seen = []

    class Net(nn.Module):
        def forward(self, x, label):
            seen.append(label)
            return torch.zeros_like(x)

    x = torch.full((1, 1, 2, 2), 0.5)
    diffpure_ldsde.purify(x, VP(Net()), None, Streams([0], 0, "adv"), **GIVEN)
    assert [label.item() for label in seen] == pytest.approx([9.99] * 10, abs=1e-4)


def test_on_step_is_called_at_one_level():
    steps, x = [], torch.rand(1, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_hat = diffpure_ldsde.purify(
        x,
        Gaussian(),
        None,
        Streams([0], 0, "adv"),
        on_step=lambda *step: steps.append(step),
        **{**GIVEN, "eta": 0.0},
    )
    assert [i for i, *_ in steps] == list(range(10))
    assert {sigma for _, sigma, *_ in steps} == {Gaussian().sigma(SCORE_T)}
    z = steps[0][2]
    torch.testing.assert_close(z, to_pm1(x) * math.hypot(1, Gaussian().sigma(SCORE_T)))
    moved = [(b[2] - a[2]).abs().max().item() for a, b in pairwise(steps)]
    assert max(moved) < 0.01  # a step of the drift alone
    assert torch.equal(x_hat, to_01(to_pm1(x_hat)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lam": 0.0},
        {"sigma2": -1.0},
        {"eta": -1.0},
        {"score_t": 0.0},
        {"solver": "heun"},
        {"dt": 0.0},
        {"repeats": 0},
        {"beta_max": 0.0},
        {"beta_min": -1.0},
    ],
)
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match=r"^need .* got"):
        moments(diffpure_ldsde.purify, 10, 0.5, Gaussian(), **{**GIVEN, **wrong})
