"""Gradual noise scheduling against runs of its authors' code, and against a closed form for Gaussian data."""

import functools
import math
from itertools import pairwise

import pytest
import torch

from dp.diffusion.denoisers import VP, Gaussian
from dp.diffusion.rounds import indices
from dp.diffusion.sampling import vp_sigmas
from dp.purifiers import lee_kim
from dp.rng import Streams
from tests.helpers import parity
from tests.helpers.affine import moments

TOLERANCE = 1e-5  # of the largest entry


@functools.cache
def recorded(path):
    return parity.Recorded(path)


def used_draws(file) -> torch.Tensor:
    """The draws that have an effect: of every round the forward noise and, with eta > 0, all but the last step's."""
    used, i = [], 0
    for chain in file.settings["indices"]:
        used += [i, *range(i + 1, i + len(chain))] if file.settings["eta"] > 0 else [i]
        i += 1 + len(chain)
    assert i == len(file["draws"])
    return file["draws"][used]


def purified(file, x, **more):
    rng = parity.Script(used_draws(file))
    given = {"rounds": file.settings["rounds"], "eta": file.settings["eta"], "clamp": "none"}
    x_hat = lee_kim.purify(x, file.denoiser(), file.classifier(), rng, **given, **more)
    assert rng.left == 0
    return x_hat


def assert_equal(ours, theirs):
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


@parity.of("lee_kim")
def test_rounds_steps_and_image_are_the_originals(path):
    file, steps = recorded(path), []
    x_hat = purified(file, file["x"], on_step=lambda i, sigma, z, x0: steps.append((i, sigma, x0)))
    assert_equal(x_hat, file["x_hat"])
    chains = [list(reversed(chain)) for chain in file.settings["indices"]]
    assert [indices(*each) for each in file.settings["rounds"]] == chains
    assert [i for i, _, _ in steps] == list(range(sum(map(len, chains))))
    assert [sigma for _, sigma, _ in steps] == [vp_sigmas()[k].item() for chain in chains for k in chain]
    last = -1
    for chain, state in zip(chains, file["states"], strict=True):
        last += len(chain)
        assert_equal(steps[last][2], state)  # a round ends at its last x0


@parity.of("lee_kim")
def test_gradients_are_the_originals(path):
    file = recorded(path)
    x = file["x"].clone().requires_grad_()
    x_hat = purified(file, x)
    logits = file.classifier()(x_hat)
    assert_equal(logits, file["logits"])
    (grad_w,) = torch.autograd.grad((file["w"] * x_hat).sum(), x, retain_graph=True)
    (grad_v,) = torch.autograd.grad((file["v"] * logits).sum(), x)
    assert_equal(grad_w, file["grad_w"])
    assert_equal(grad_v, file["grad_v"])


def test_the_files_hold_both_samplers_and_an_uneven_round():
    if parity.FOLDER != parity.OURS:
        pytest.skip("other files")
    settings = [recorded(path).settings for path in parity.files("lee_kim")]
    assert {s["eta"] for s in settings} == {0, 1}
    assert any(depth % n for s in settings for depth, n in s["rounds"])


@pytest.mark.parametrize(("depth", "steps", "chain"), [(25, 4, [23, 17, 11, 5]), (4, 4, [3, 2, 1, 0]), (30, 1, [29])])
def test_indices(depth, steps, chain):
    assert indices(depth, steps) == chain


def test_an_uneven_round_has_more_steps_than_it_says():
    assert len(indices(50, 20)) == 25
    assert indices(125, 50)[0] == 123  # noised at 124


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_gaussian_data_have_a_closed_form(eta):
    """Mean and variance by the papers' formulas in their own state, with the exact noise prediction of N(.1, .3^2).

    The rounds contain an even one, one whose first index lies below the noise, and one with more steps than it says.
    """
    rounds, mean0, std0, x = [(30, 3), (25, 4), (50, 20)], 0.1, 0.3, 0.52
    abar = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0).tolist()
    mean, variance = 2 * x - 1, 0.0
    for depth, n in rounds:
        mean, variance = math.sqrt(abar[depth - 1]) * mean, abar[depth - 1] * variance + 1 - abar[depth - 1]
        stride = depth // n
        chain = list(range(stride - 1, depth, stride))[::-1]
        for k, a_next in zip(chain, [abar[j] for j in chain[1:]] + [1.0], strict=True):
            a = abar[k]
            gain = math.sqrt(1 - a) / (a * std0**2 + 1 - a)  # eps(v) = gain (v - sqrt(a) mean0)
            noise = eta**2 * (1 - a_next) / (1 - a) * (1 - a / a_next)
            ahead = math.sqrt(1 - a_next - noise) - math.sqrt((1 - a) * a_next / a)  # what multiplies eps(v)
            slope = math.sqrt(a_next / a) + ahead * gain
            mean = slope * mean - ahead * gain * math.sqrt(a) * mean0
            variance = slope**2 * variance + noise
    draws = 3 + (sum(len(indices(*each)) - 1 for each in rounds) if eta else 0)
    found = moments(lee_kim.purify, draws, x, Gaussian(mean0, std0), rounds=rounds, eta=eta, clamp="none")
    assert found == pytest.approx((mean, variance), rel=1e-10)


@pytest.mark.parametrize("rounds", [[(0, 1)], [(10, 11)], [(1001, 1)], [(10.0, 2)], [(10, 0)], [[30, True]]])
def test_wrong_rounds(rounds):
    with pytest.raises(ValueError, match=r"need rounds \[K, n\] of integers with 1 <= n <= K <= 1000, got"):
        moments(lee_kim.purify, 1, 0.5, Gaussian(), rounds=rounds, eta=1.0)


@pytest.mark.parametrize("rounds", [[[30]], [30, 1], [[30, 1, 1]], 30, "no", ["no"], [None]])
def test_no_pairs(rounds):
    with pytest.raises(ValueError, match=r"^need rounds as a list of pairs \[K, n\], got"):
        moments(lee_kim.purify, 1, 0.5, Gaussian(), rounds=rounds, eta=1.0)


def test_a_clock_without_noise_at_its_start_takes_one_step_less():
    """Of the VP clock in continuous time."""
    denoiser, levels = VP(parity.Flat()), []
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    given = {"rounds": [[3, 3], [5, 2]], "eta": 1.0, "on_step": lambda i, sigma, z, x0: levels.append((i, sigma))}
    x_hat = lee_kim.purify(x, denoiser, None, Streams([0, 1], 0, "adv"), **given)  # pyright: ignore[reportArgumentType]
    assert torch.isfinite(x_hat).all()
    assert levels == [(i, denoiser.sigma(k / 1000)) for i, k in enumerate((2, 1, 3, 1))]
    assert denoiser.nfe == 4
    with pytest.raises(ValueError, match=r"need noise in every round, got none at the indices of \[1, 1\]"):
        lee_kim.purify(x, denoiser, None, Streams([0, 1], 0, "adv"), rounds=[[1, 1]], eta=1.0)  # pyright: ignore[reportArgumentType]


def test_other_wrong_values():
    with pytest.raises(ValueError, match="need rounds as a list of pairs"):
        moments(lee_kim.purify, 1, 0.5, Gaussian(), rounds=[], eta=1.0)
    with pytest.raises(ValueError, match="need 0 <= eta <= 1, got eta=2"):
        moments(lee_kim.purify, 1, 0.5, Gaussian(), rounds=[(10, 1)], eta=2)


def test_published_schedules_have_the_papers_cost():
    """470 network evaluations on CIFAR-10 and 380 on SVHN; the surrogate has 7."""
    for ends, nfe in ((125, 470), (80, 380), (200, 620)):
        rounds = [(k, k) for k in (30, 30, 30, 30, 50, 50, ends, ends)]
        assert sum(len(indices(*each)) for each in rounds) == nfe
        assert all(a == b + 1 for each in rounds for a, b in pairwise(indices(*each)))
