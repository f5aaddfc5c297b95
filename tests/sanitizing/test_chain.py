"""Rounds, distances and the choice of a candidate."""

import math

import pytest
import torch

from dp.diffusion.denoisers import Gaussian
from dp.diffusion.sampling import vp_sigma
from dp.rng import Streams
from dp.sanitizing.chain import Rounds, to_bytes, to_floats
from dp.sanitizing.distance import distances, pick, similarity
from dp.sanitizing.elixir import States, put
from dp.subset import Subset

PAPER = Rounds(0.15, 140, 10, 5, "large")


class Exact(Gaussian):
    """The denoiser of data that is one image, `x0` in [-1,1]: it returns it."""

    def __init__(self, x0: torch.Tensor):
        super().__init__()
        self.x0 = x0

    def denoise(self, z, sigma, label=None):
        return self.x0.expand_as(z)


def images(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 2, 6, 6, generator=torch.Generator().manual_seed(2))


def test_the_papers_rounds_have_every_index_of_the_schedule():
    levels = PAPER.levels(vp_sigma)
    assert levels == [*(vp_sigma(k / 1000) for k in range(149, -1, -1)), 0.0]
    assert (PAPER.nfe(vp_sigma), PAPER.kept) == (750, 50)


def test_quick_rounds_end_like_the_papers():
    quick = Rounds(0.15, 10, 10, 5, "small").levels(vp_sigma)
    assert len(quick) == 21
    assert quick[0] == vp_sigma(0.149)
    assert quick[-11:] == PAPER.levels(vp_sigma)[-11:]


def test_a_clock_without_noise_at_its_start_has_one_level_less():
    assert len(Rounds(0.2, 2, 3, 1, "small").levels(lambda t: 3 * t)) == 5


def test_a_perfect_denoiser_ends_at_its_image_and_the_states_have_the_noise_of_their_level():
    x0 = torch.zeros(2, 40, 40)
    rounds, x = Rounds(0.15, 5, 4, 2, "small"), torch.full((2, 2, 40, 40), 0.9)
    states = rounds.states(x, Exact(x0), Streams([4, 7], 0, "test"))
    assert len(states) == 8
    assert states[0].dtype == torch.uint8
    for end in (3, 7):
        assert torch.equal(states[end], torch.full((2, 2, 40, 40), 128, dtype=torch.uint8))  # .5
    # The state at index 2 is x0 + sigma n, over sqrt(1 + sigma^2); in 255ths of [0,1] its deviation is 127.5 as much.
    sigma = vp_sigma(0.002)
    deviation = (states[0].double() - 127.5).std().item()
    assert deviation == pytest.approx(math.hypot(127.5 * sigma / math.sqrt(1 + sigma**2), 12**-0.5), rel=0.05)


def test_large_steps_are_wider_than_small_ones():
    x, x0 = torch.full((1, 2, 40, 40), 0.5), torch.zeros(2, 40, 40)
    spread = {}
    for variance in ("small", "large"):
        rounds = Rounds(0.4, 2, 200, 1, variance)
        first = rounds.states(x, Exact(x0), Streams([1], 0, "test"))[0]
        spread[variance] = first.double().std().item()
    assert spread["large"] > spread["small"] > 0


def test_an_image_does_not_depend_on_its_mates():
    x, denoiser = images(4), Gaussian()
    whole = PAPER.states(x, denoiser, Streams([5, 6, 7, 8], 1, "test"))
    part = PAPER.states(x[2:3], denoiser, Streams([7], 1, "test"))
    assert all(torch.equal(a[2:3], b) for a, b in zip(whole, part, strict=True))
    assert denoiser.nfe == 2 * 750


def test_rounds_have_noise_of_their_own():
    rounds = Rounds(0.15, 3, 1, 2, "small")
    first, second = rounds.states(torch.full((1, 1, 6, 6), 0.5), Gaussian(), Streams([1], 0, "test"))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("wrong", [(0.15, 0, 10, 5, "small"), (0.005, 1, 10, 5, "small"), (1.5, 1, 1, 1, "small")])
def test_mistakes(wrong):
    with pytest.raises(ValueError, match="need coarse, last, count >= 1"):
        Rounds(*wrong)


def test_an_unknown_variance():
    with pytest.raises(ValueError, match="need variance among small, large, got variance='learned'"):
        Rounds(0.15, 1, 1, 1, "learned")


def test_eight_bits_there_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_floats(levels)), levels)


def test_similarity_by_its_definition():
    """Windows of 3x3 one by one, with the variances of a sample."""
    a, b = images(2).double(), images(4)[2:].double()
    c1, c2, total = 0.01**2, 0.03**2, torch.zeros(2, dtype=torch.float64)
    for channel in range(2):
        for i in range(4):
            for j in range(4):
                u, v = (w[:, channel, i : i + 3, j : j + 3].flatten(1) for w in (a, b))
                mu, mv = u.mean(1), v.mean(1)
                cov = ((u - mu[:, None]) * (v - mv[:, None])).sum(1) / 8
                top = (2 * mu * mv + c1) * (2 * cov + c2)
                total += top / ((mu**2 + mv**2 + c1) * (u.var(1) + v.var(1) + c2))
    assert torch.allclose(similarity(a, b), total / 32, atol=1e-12)


def test_distances_have_two_halves():
    x, features = images(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert torch.allclose(distances(x, x, features, features), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(distances(x, x, features, -features), torch.full((2,), 0.5, dtype=torch.float64))


def test_the_candidate_at_the_80th_percentile():
    distance = torch.tensor([[0.0, 0.5, 0.1, 0.4, 0.2, 0.3], [0.0, 0.5, 0.1, 0.4, 0.2, 0.3]])
    allowed = torch.tensor([[True] * 6, [True, False, True, False, True, False]])
    # of all six, place int(6 x .8) = 4 in 0, .1, .2, .3, .4, .5; of three, place 2 in 0, .1, .2
    assert pick(distance, allowed, 0.8).tolist() == [3, 4]
    alone = torch.tensor([[True] + [False] * 5] * 2)
    assert pick(distance, alone, 0.8).tolist() == [0, 0]


def test_put_replaces_what_it_is_told():
    data = Subset(torch.arange(4), images(4), torch.zeros(4, dtype=torch.long))
    before = data.x.clone()
    states = torch.randint(256, (2, 3, 2, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part = States(torch.tensor([1, 3]), states, torch.tensor([[0, 0.1, 0.2], [0, 0.2, 0.1]], dtype=torch.float64))
    every, label = torch.ones(2, 3, dtype=torch.bool), torch.tensor([5, 6])
    put(data, part, torch.tensor([True, False]), every, label, 0.8)
    assert data.y.tolist() == [0, 5, 0, 0]
    assert torch.equal(data.x[1], states[0, 2].float() / 255)
    assert torch.equal(data.x[[0, 2, 3]], before[[0, 2, 3]])
    put(data, part, torch.tensor([False, True]), ~every, label, 0.8)  # only the image itself is left
    assert data.y.tolist() == [0, 5, 0, 6]
    assert torch.equal(data.x[3], before[3])
