"""CERTIFY with base classifiers whose smoothed classifier is known."""

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from dp.certification import bare
from dp.certification.bounds import radius_of
from dp.certification.smoothing import ESTIMATE, SELECT, Smoothing
from dp.rng import Streams

SHAPE = (1, 4, 4)
WEIGHTS = torch.linspace(-1, 1, 16).view(SHAPE)
NORM = float(WEIGHTS.norm())
X = torch.full(SHAPE, 0.5)  # the weights sum to 0, so w x = 0


def smoothing(base=bare.classes, **keys) -> Smoothing:
    given = {"sigma": 0.25, "n0": 20, "n": 1000, "alpha": 0.001, "images": 1, "every": None, "batch": 50, "seed": 7}
    return Smoothing(base=base, **{**given, **keys})


class Linear(torch.nn.Module):
    """Class 1 where w x + margin > 0, else class 0."""

    def __init__(self, margin: float):
        super().__init__()
        self.margin = margin

    def forward(self, x: Tensor) -> Tensor:
        logit = (x * WEIGHTS).sum(dim=(1, 2, 3)) + self.margin
        return torch.stack([-logit, logit], dim=1)


@pytest.mark.parametrize(("distance", "sigma"), [(0.2, 0.25), (0.5, 0.25), (0.3, 0.5)])
def test_a_linear_classifiers_radius_is_its_margin(distance, sigma):
    """The distance to the boundary is margin / norm(w), and the smoothed classifier has the same boundary."""
    one, classifier = smoothing(sigma=sigma, n0=200), Linear(distance * NORM)
    rows = [one.certify(X, i, 1, None, classifier) for i in range(12)]  # type: ignore[arg-type]
    assert all(row.predicted == row.correct == 1 for row in rows)
    assert all(0.6 * distance < row.radius <= distance for row in rows)
    truth = NormalDist().cdf(distance / sigma)  # the chance of class 1 under noise
    low, high = binom.interval(0.99999, 12 * one.n, truth)
    assert low <= sum(row.count for row in rows) <= high
    assert [row.radius for row in rows] == [radius_of(row.count, 1000, 0.001, sigma) for row in rows]


def test_the_row_of_an_image():
    row = smoothing(batch=64).certify(X, 5, 0, None, Linear(0.2 * NORM))  # type: ignore[arg-type]
    assert (row.id, row.label, row.predicted, row.correct, row.n) == (5, 0, 1, 0, 1000)
    assert row.evaluations == 64 * (1 + 16)  # both last calls are padded


def test_counts_do_not_depend_on_the_width_of_a_call():
    rows = [smoothing(batch=b).certify(X, 3, 1, None, Linear(0.1)) for b in (7, 50, 1000)]  # type: ignore[arg-type]
    assert len({replace(row, evaluations=0) for row in rows}) == 1
    assert len({row.evaluations for row in rows}) == 3  # padding counts


def test_another_seed_and_another_image_have_other_noise():
    classifier = Linear(0.05)
    counts = [smoothing(seed=s).certify(X, i, 1, None, classifier).count for s, i in ((7, 0), (8, 0), (7, 1))]  # type: ignore[arg-type]
    assert len({*counts}) == 3


def test_selection_and_estimation_share_no_noise():
    seen: list[Tensor] = []

    def base(x, sigma, denoiser, classifier, rng):
        seen.append((x - X) / sigma)
        return torch.zeros(len(x), dtype=torch.long)

    one = smoothing(base, n0=100, n=300, batch=100)
    one.certify(X, 4, 0, None, Linear(0))  # type: ignore[arg-type]
    select, estimate = seen[0], torch.cat(seen[1:])
    assert (len(select), len(estimate)) == (100, 300)
    everything = torch.cat([select, estimate]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 400  # no noise occurs twice
    for stage, found in ((SELECT, select), (ESTIMATE, estimate)):
        streams = Streams([4], 7, stage)
        drawn = torch.cat([streams.draw(k).randn_like(X[None]) for k in range(len(found))])
        assert torch.allclose(found, drawn, atol=1e-5)
    assert abs(float((select * estimate[:100]).mean())) < 5 / math.sqrt(1600)  # uncorrelated


def test_the_base_goes_on_with_streams_of_its_own():
    """Its noise is neither the smoothing noise nor that of another sample."""
    own = []

    def base(x, sigma, denoiser, classifier, rng):
        own.extend([(x - X) / sigma, rng.randn_like(x), rng.draw(0).randn_like(x), rng.draw(1).randn_like(x)])
        return torch.zeros(len(x), dtype=torch.long)

    smoothing(base, n0=50, n=50).certify(X, 4, 0, None, Linear(0))  # type: ignore[arg-type]
    assert len(torch.unique(torch.cat(own).flatten(1), dim=0)) == 400


def test_a_coin_is_an_abstention():
    def coin(x, sigma, denoiser, classifier, rng):
        return (rng.uniform_like(x)[:, 0, 0, 0] < 0.5).long()

    rows = [smoothing(coin).certify(X, i, i % 2, None, Linear(0)) for i in range(4)]  # type: ignore[arg-type]
    assert {(row.predicted, row.radius, row.correct) for row in rows} == {(-1, 0.0, 0)}
    assert all(400 < row.count < 600 for row in rows)


def test_a_class_that_the_estimation_never_sees_is_an_abstention():
    calls = []

    def moody(x, sigma, denoiser, classifier, rng):
        calls.append(len(x))
        return torch.full((len(x),), 5 if len(calls) == 1 else 2)

    row = smoothing(moody, n0=50, n=100).certify(X, 0, 5, None, Linear(0))  # type: ignore[arg-type]
    assert (row.predicted, row.count, row.correct) == (-1, 0, 0)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sigma": 0.0}, "need sigma > 0"),
        ({"alpha": 1.0}, "0 < alpha < 1"),
        ({"n0": 0}, r"got certificate\.n0=0"),
        ({"batch": -1}, r"got certificate\.batch=-1"),
        ({"every": 0}, r"got certificate\.every=0"),
        ({"n": 9}, "need n >= 10"),
    ],
)
def test_settings_that_make_no_sense(changed, words):
    with pytest.raises(ValueError, match=words):
        replace(smoothing(), **changed)
