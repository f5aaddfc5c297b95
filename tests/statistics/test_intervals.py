"""Intervals and paired tests against scipy, exact sums and simulation."""

import numpy as np
import pytest
from interval_coverage import coverage, truth
from scipy import stats

from dp.statistics.intervals import bootstrap, interval, mcnemar, paired, wilson


@pytest.mark.parametrize("n", [1, 2, 16, 64, 256, 512, 10_000])
def test_wilson_is_scipys(n):
    for k in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        expected = stats.binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
        assert wilson(k / n, n) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize(
    ("correct", "n", "interval"),
    [
        (304, 512, (55.1, 63.5)),  # 59.4 %
        (412, 512, (76.8, 83.7)),  # 80.5 %
        (476, 512, (90.4, 94.9)),  # 93.0 %
        (0, 512, (0, 0.74)),
        (152, 256, (53.3, 65.2)),  # 59.4 %
    ],
)
def test_wilson_at_known_values(correct, n, interval):
    assert tuple(round(100 * bound, 1 if correct else 2) for bound in wilson(correct / n, n)) == interval


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_wilson_coverage(p):
    """Share of all binomial outcomes, by weight, whose interval holds the truth."""
    n = 512
    inside = np.array([low <= p <= high for low, high in (wilson(k / n, n) for k in range(n + 1))])
    assert 0.93 < stats.binom.pmf(np.arange(n + 1), n, p) @ inside < 0.97
    drawn = np.random.default_rng(0).binomial(n, p, 20_000)
    assert 0.93 < inside[drawn].mean() < 0.97


@pytest.mark.parametrize(("share", "n"), [(-0.01, 10), (1.01, 10), (float("nan"), 10), (0.5, 0)])
def test_wilson_of_nonsense(share, n):
    with pytest.raises(ValueError, match="need a share"):
        wilson(share, n)


def test_bootstrap_covers_a_normal_mean():
    """For many images the percentile interval is the normal one, mean +- 1.96 standard errors."""
    scores = np.random.default_rng(3).integers(0, 11, size=2000) / 10
    low, high = bootstrap(scores)
    error = 1.96 * scores.std() / np.sqrt(len(scores))
    assert (low, high) == pytest.approx((scores.mean() - error, scores.mean() + error), abs=0.1 * error)


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 512), (1, 64), (30, 64), (64, 64), (304, 512)])
def test_interval_of_decisions_is_wilsons(correct, n):
    decisions = np.repeat([1.0, 0.0], [correct, n - correct])
    assert interval(decisions) == pytest.approx(wilson(correct / n, n), abs=1e-12)


def test_interval_of_many_fractions_is_the_normal_one():
    scores = np.random.default_rng(3).integers(0, 11, size=20_000) / 10
    error = 1.96 * scores.std() / np.sqrt(len(scores))
    assert interval(scores) == pytest.approx((scores.mean() - error, scores.mean() + error), abs=0.01 * error)


def test_a_fraction_near_the_edge_is_hardly_more_certain_than_a_decision():
    """63 images at 0 and one at .05: the bootstrap alone would say [0, .2] percent, Wilson of 0 of 64 [0, 5.7]."""
    scores = np.array([0.0] * 63 + [0.05])
    assert bootstrap(scores)[1] < 0.003
    assert interval(scores)[0] < 1e-3
    assert 0.8 * wilson(0, 64)[1] < interval(scores)[1] < wilson(0, 64)[1] + scores.mean()


@pytest.mark.parametrize(("rule", "samples"), [("single", 1), ("average", 10), ("vote", 10), ("worst", 20)])
@pytest.mark.parametrize(("p", "seeds"), [(0.05, 1), (0.05, 3), (0.5, 3), (0.95, 1)])
def test_coverage(rule, samples, p, seeds):
    """Within 3.2 standard errors of 95 %; scripts/studies/interval_coverage.py measures more cases and more often."""
    subset = 5 if rule == "worst" else samples
    assert coverage(rule, p, 2.0, samples, seeds, subset, 1000) == pytest.approx(0.95, abs=0.022)


@pytest.mark.parametrize(("rule", "samples"), [("average", 10), ("vote", 10), ("vote", 5), ("worst", 5)])
def test_the_truth_that_coverage_is_measured_by(rule, samples):
    rng = np.random.default_rng(1)
    right = rng.random((20_000, samples)) < rng.beta(0.7 * 2, 0.3 * 2, size=20_000)[:, None]
    scores = {"average": right.mean(axis=1), "vote": right.mean(axis=1) > 0.5, "worst": right.all(axis=1)}[rule]
    assert truth(rule, 0.7, 2.0, samples) == pytest.approx(scores.mean(), abs=4 * scores.std() / np.sqrt(20_000))


def test_counting_images_times_seeds_would_undercover():
    """The test above can fail: Wilson with n = 3 x 512 where seeds share their images."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(500):
        chance = rng.beta(0.2, 0.2, size=512)
        low, high = wilson((rng.random((3, 512)) < chance).mean(), 3 * 512)
        held += low <= 0.5 <= high
    assert held / 500 < 0.85


@pytest.mark.parametrize(
    ("won", "lost", "p"), [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (0, 6, 2 / 64), (4, 1, 12 / 32), (10, 10, 1.0)]
)
def test_mcnemar_by_hand(won, lost, p):
    """`won` and `lost` images differ; twice the binomial tail of a fair coin. Agreement says nothing."""
    first = np.repeat([0, 1, 1, 0], [won, lost, 7, 9])
    second = np.repeat([1, 0, 1, 0], [won, lost, 7, 9])
    assert mcnemar(first, second) == pytest.approx(p)
    assert mcnemar(second, first) == pytest.approx(p)
    assert mcnemar(first.astype(bool), second.astype(bool)) == pytest.approx(p)


def test_mcnemar_is_a_test():
    """Under the null its p is below .05 in at most 5 % of samples, and often under a real difference."""
    rng = np.random.default_rng(0)
    pairs = rng.random((200, 2, 200)) < 0.6
    assert np.mean([mcnemar(a, b) < 0.05 for a, b in pairs]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    better = rng.random((40, 2, 200)) < np.array([0.5, 0.75])[:, None]
    assert np.mean([mcnemar(a, b) < 0.05 for a, b in better]) > 0.9


def test_paired_by_hand():
    """Two of ten images are won: resampled, the gain is a binomial count of ten with chance .2."""
    difference, low, high = paired(np.zeros(10), np.repeat([1.0, 0.0], [2, 8]))
    assert difference == pytest.approx(0.2)
    assert (low, high) == pytest.approx(tuple(stats.binom.ppf([0.025, 0.975], 10, 0.2) / 10))
    scores = np.random.default_rng(1).random(50)
    assert paired(scores, scores) == (0.0, 0.0, 0.0)


def test_paired_is_narrow_where_scores_go_together():
    """A gain of .05 on images of very different scores: the images' spread cancels."""
    scores = np.random.default_rng(1).random(300) * 0.9
    assert paired(scores, scores + 0.05) == pytest.approx((0.05, 0.05, 0.05))


def test_paired_coverage():
    """Averages of 10 samples under two defenses, an image's chances correlated: the true difference is .08."""
    rng, held = np.random.default_rng(5), 0
    for _ in range(200):
        chance = rng.beta(2, 2, size=64) * 0.84
        first = rng.binomial(10, chance) / 10
        _, low, high = paired(first, rng.binomial(10, chance + 0.08) / 10)
        held += low <= 0.08 <= high
    assert held / 200 == pytest.approx(0.95, abs=0.045)


def test_bootstrap_is_the_same_twice():
    scores = np.random.default_rng(1).random(64)
    assert bootstrap(scores) == bootstrap(scores)


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        (np.ones(3), np.ones(4), "of the same images"),
        (np.ones((2, 2)), np.ones((2, 2)), "one score per image"),
        (np.ones(0), np.ones(0), "one score per image"),
        (np.array([0.5, 2.0]), np.ones(2), "scores in"),
        (np.array([0.5, np.nan]), np.ones(2), "scores in"),
    ],
)
def test_pairs_that_are_none(first, second, what):
    for compare in (mcnemar, paired):
        with pytest.raises(ValueError, match=what):
            compare(first, second)


def test_mcnemar_of_fractions():
    with pytest.raises(ValueError, match="need verdicts of 0 and 1"):
        mcnemar(np.array([0.5, 1.0]), np.ones(2))
