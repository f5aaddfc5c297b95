"""The base classifiers: formulas written by hand, the vote, and the levels of a chain."""

import functools
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dp.certification import bare, densepure, one_shot
from dp.certification.densepure import chain, levels_of, vote
from dp.diffusion.denoisers import EDM, Consistency, EpsNet, Gaussian
from dp.diffusion.sampling import time_of, vp_sigma, vp_sigmas
from dp.rng import Streams

SIGMA = 0.25


class Logits(torch.nn.Module):
    """A linear classifier of six classes."""

    def __init__(self):
        super().__init__()
        self.weights = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weights.to(x.dtype).T


def images(count: int) -> tuple[Tensor, Tensor]:
    """Images (count,1,4,4) in [0,1], and unit Gaussian noise of their shape."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 4, 4, generator=generator), torch.randn(count, 1, 4, 4, generator=generator)


def test_one_shot_is_the_formula():
    """Posterior mean of N(.1, .6^2) under noise of 2 sigma in [-1,1], clipped, as an image in [0,1]."""
    x, n = images(200)
    z, variance = 2 * x - 1 + 2 * SIGMA * n, 0.6**2
    x0 = (variance * z + (2 * SIGMA) ** 2 * 0.1) / (variance + (2 * SIGMA) ** 2)
    expected = Logits()(((x0 + 1) / 2).clamp(0, 1)).argmax(dim=1)
    denoiser = Gaussian(0.1, 0.6)
    found = one_shot.classes(x + SIGMA * n, SIGMA, denoiser, Logits(), Streams(range(200), 0, "a"))  # type: ignore[arg-type]
    assert torch.equal(found, expected)
    assert len(torch.unique(found)) > 2
    assert denoiser.nfe == 1
    clipped = ((x0 > 1) | (x0 < -1)).any()
    assert clipped  # otherwise the test would not see the clipping


class Asked(Gaussian):
    """It keeps what it is asked for."""

    def __init__(self):
        super().__init__()
        self.asked: list[tuple[Tensor, float]] = []

    def denoise(self, z, sigma, label=None):
        self.asked.append((z, float(sigma)))
        return super().denoise(z, sigma, label)


@pytest.mark.parametrize("sigma", [0.1, 0.25, 1.0])
def test_what_the_denoiser_is_asked_for(sigma):
    """The noised image in [-1,1], at the level that its noise has there: 2 sigma. A chain begins with the same."""
    x, n = images(3)
    noised, rng = x + sigma * n, Streams(range(3), 0, "a")
    one, many = Asked(), Asked()
    one_shot.classes(noised, sigma, one, Logits(), rng)  # type: ignore[arg-type]
    densepure.classes(noised, sigma, many, Logits(), rng, steps=2, chains=2)  # type: ignore[arg-type]
    assert (len(one.asked), len(many.asked)) == (1, 4)
    for z, level in (one.asked[0], many.asked[0], many.asked[2]):
        assert level == 2 * sigma
        assert torch.allclose(z, 2 * x - 1 + 2 * sigma * n, atol=1e-6)


def test_a_level_beyond_the_clock_is_refused():
    """The last level of the clock is 157.4 in [-1,1], so sigma = 78.8 is too much and 78.6 is not."""
    x, rng = images(2)[0], Streams(range(2), 0, "a")
    for base in (one_shot.classes, functools.partial(densepure.classes, steps=1, chains=1)):
        base(x, 78.6, Gaussian(), Logits(), rng)  # type: ignore[arg-type]
        for sigma in (78.8, 1e9):
            with pytest.raises(ValueError, match=r"need a noise level above 0 and at most 157"):
                base(x, sigma, Gaussian(), Logits(), rng)  # type: ignore[arg-type]


def test_one_shot_with_a_consistency_model():
    """With a network of zeros the consistency model is c_skip z."""
    x, n = images(50)
    z = 2 * x - 1 + 2 * SIGMA * n
    x0 = 0.25 / ((2 * SIGMA - 0.002) ** 2 + 0.25) * z
    expected = Logits()(((x0 + 1) / 2).clamp(0, 1)).argmax(dim=1)
    found = one_shot.classes(x + SIGMA * n, SIGMA, Consistency(Zeros()), Logits(), Streams(range(50), 0, "a"))  # type: ignore[arg-type]
    assert torch.equal(found, expected)


class Zeros(torch.nn.Module):
    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_bare_sees_the_noise():
    x, n = images(50)
    found = bare.classes(x + SIGMA * n, SIGMA, None, Logits(), Streams(range(50), 0, "a"))  # type: ignore[arg-type]
    assert torch.equal(found, Logits()(x + SIGMA * n).argmax(dim=1))


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        ([3, 1, 1], 1),
        ([3, 1], 3),  # a tie: the first
        ([1, 3], 1),
        ([5, 2, 2, 5], 5),
        ([2, 5, 5, 2, 0], 2),
        ([4, 2, 0], 4),
        ([0, 7, 7, 7, 0, 0], 0),
        ([9, 1, 2, 2, 1], 1),  # of 1 and 2 the class 1 came first
    ],
)
def test_the_vote_and_its_ties(answers, winner):
    mates = [6] * len(answers)
    assert vote(torch.tensor([answers, mates]).T).tolist() == [winner, 6]


def test_densepure_votes_over_chains_with_noise_of_their_own():
    x, n = images(40)
    denoiser, rng, classifier = Gaussian(), Streams(range(40), 0, "a"), Logits()
    run = functools.partial(densepure.classes, x + SIGMA * n, SIGMA, denoiser, classifier)  # type: ignore[arg-type]
    found = run(rng, steps=3, chains=5)
    assert denoiser.nfe == 15
    levels = levels_of(denoiser, 2 * SIGMA, 3)
    z = 2 * (x + SIGMA * n) - 1
    each = [classifier(((chain(z, levels, denoiser, rng.draw(k)) + 1) / 2).clamp(0, 1)).argmax(dim=1) for k in range(5)]
    assert not all(torch.equal(each[0], one) for one in each[1:])
    expected = [max(dict.fromkeys(votes), key=votes.count) for votes in torch.stack(each, dim=1).tolist()]
    assert found.tolist() == expected


def test_one_chain_of_one_step_is_one_shot():
    x, n = images(100)
    given = (x + SIGMA * n, SIGMA, Gaussian(0.1, 0.6), Logits(), Streams(range(100), 0, "a"))
    assert torch.equal(densepure.classes(*given, steps=1, chains=1), one_shot.classes(*given))  # type: ignore[arg-type]


class Scripted:
    """The noise of a list, in its order."""

    def __init__(self, noises: list[Tensor]):
        self.noises = iter(noises)

    def randn_like(self, z: Tensor) -> Tensor:
        return next(self.noises)


def test_a_chain_is_the_papers_ancestral_sampling():
    """Ho et al. 2020, Eqs. 6 and 7, on x_t = z sqrt(abar), with the clipped prediction."""
    generator = torch.Generator().manual_seed(3)
    z = 2 * torch.randn(8, 1, 4, 4, generator=generator, dtype=torch.float64)
    noises = [torch.randn(8, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    levels = (1.0, 0.7, 0.3, 0.1, 0.0)
    denoiser = Gaussian(0.2, 0.9)
    abars = [1 / (1 + level**2) for level in levels]
    state = z * math.sqrt(abars[0])
    for i, (abar, abar_next) in enumerate(pairwise(abars)):
        x0 = denoiser(state / math.sqrt(abar), levels[i]).clamp(-1, 1)
        alpha = abar / abar_next
        mean = math.sqrt(abar_next) * (1 - alpha) / (1 - abar) * x0
        mean = mean + math.sqrt(alpha) * (1 - abar_next) / (1 - abar) * state
        std = math.sqrt((1 - abar_next) / (1 - abar) * (1 - alpha))
        state = mean + (std * noises[i] if levels[i + 1] else 0)
    found = chain(z, levels, denoiser, Scripted(noises))  # type: ignore[arg-type]
    assert torch.allclose(found, state, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0, 2.0, 20.0])
def test_the_time_of_a_level(sigma):
    assert vp_sigma(time_of(vp_sigma, sigma)) == pytest.approx(sigma, rel=1e-9)


def test_the_time_of_a_clock_with_steps_is_the_first_that_has_the_level():
    clock = EpsNet(Zeros()).sigma
    for k in (1, 200, 998):
        t = time_of(clock, vp_sigmas()[k].item())
        assert clock(t) == vp_sigmas()[k].item()
        assert clock(t - 1e-9) == vp_sigmas()[k - 1].item()


@pytest.mark.parametrize("sigma", [0.0, -1.0, 200.0])
def test_a_level_that_the_clock_does_not_reach(sigma):
    with pytest.raises(ValueError, match="need a noise level above 0 and at most 157"):
        time_of(vp_sigma, sigma)


def test_levels_of_a_chain():
    """Equal steps in time. sigma .724 is time .2, so four steps are at times .2, .15, .1, .05."""
    for denoiser in (Gaussian(), EDM(Zeros())):
        levels = levels_of(denoiser, vp_sigma(0.2), 4)
        assert levels == pytest.approx((vp_sigma(0.2), vp_sigma(0.15), vp_sigma(0.1), vp_sigma(0.05), 0.0), rel=1e-6)
    assert levels_of(EpsNet(Zeros()), 0.5, 1) == (0.5, 0.0)


def test_more_steps_than_levels_are_refused():
    with pytest.raises(ValueError, match="got steps=1000: fewer"):
        levels_of(EpsNet(Zeros()), 0.5, 1000)


@pytest.mark.parametrize("keys", [{"steps": 0, "chains": 1}, {"steps": 1, "chains": 0}])
def test_no_steps_and_no_chains_are_refused(keys):
    x, _ = images(1)
    with pytest.raises(ValueError, match="need steps >= 1 and chains >= 1"):
        densepure.classes(x, SIGMA, Gaussian(), Logits(), Streams([0], 0, "a"), **keys)  # type: ignore[arg-type]
