"""Curves over numbers of samples against enumerated subsets and closed forms."""

import itertools

import numpy as np
import pytest
from scipy import stats

from dp.statistics.curves import success_histogram, vote_curve, worst_curve


def subsets(samples, of):
    """(R,) the mean of `of` over all subsets of K of one image's samples, K = 1..R."""
    sizes = range(1, len(samples) + 1)
    return [np.mean([of(np.array(chosen)) for chosen in itertools.combinations(samples, k)]) for k in sizes]


def plurality(classes, label, ties):
    counts = np.bincount(classes, minlength=5)
    tied = np.flatnonzero(counts == counts.max())
    return float(tied[0] == label) if ties == "lowest" else float(label in tied) / len(tied)


def test_worst_curve_is_the_share_of_subsets():
    right = np.random.default_rng(0).random((12, 7)) < 0.7
    right[0], right[1] = True, False
    assert worst_curve(right) == pytest.approx(np.array([subsets(r, np.all) for r in right]))


def test_worst_curve_is_unbiased():
    """E = p^M for samples right with chance p: exactly, by the binomial's weights; the plug-in p^M is not."""
    samples, p = 20, 0.9
    by_count = worst_curve(np.tri(samples + 1, samples, -1))
    weights = stats.binom.pmf(np.arange(samples + 1), samples, p)
    exact = p ** np.arange(1, samples + 1)
    assert weights @ by_count == pytest.approx(exact)
    plug_in = (np.arange(samples + 1) / samples)[:, None] ** np.arange(1, samples + 1)
    assert (weights @ plug_in)[9] > exact[9] + 0.02


def test_worst_curve_of_simulated_decisions():
    """Two kinds of images, chances .95 and .5, and three seeds: within 4 standard errors of the mean of p^M."""
    rng, p = np.random.default_rng(1), np.repeat([0.95, 0.5], 2000)
    scores = worst_curve(rng.random((3, 4000, 10)) < p[:, None])
    exact = (p[:, None] ** np.arange(1, 11)).mean(axis=0)
    error = np.array([scores[p == kind].std(axis=0) for kind in (0.95, 0.5)]).mean(axis=0) / np.sqrt(4000)
    assert (np.abs(scores.mean(axis=0) - exact) < 4 * error).all()


def test_worst_curve_of_many_samples():
    """150 samples, one wrong: the subsets of M without it are 1 - M / 150 of all."""
    right = np.ones((1, 150))
    right[0, 17] = 0
    assert worst_curve(right)[0] == pytest.approx(1 - np.arange(1, 151) / 150, abs=1e-12)
    assert (worst_curve(np.ones((2, 150))) == 1).all()
    assert (worst_curve(np.zeros((2, 150))) == 0).all()


def test_curves_average_seeds_for_every_image():
    rng = np.random.default_rng(2)
    classes, labels = rng.integers(0, 3, size=(2, 6, 5)), np.arange(6) % 3
    right = classes == labels[:, None]
    assert worst_curve(right) == pytest.approx((worst_curve(right[0]) + worst_curve(right[1])) / 2)
    both = vote_curve(classes, labels)
    assert both == pytest.approx((vote_curve(classes[0], labels) + vote_curve(classes[1], labels)) / 2)


@pytest.mark.parametrize("ties", ["softmax", "lowest"])
def test_vote_curve_is_the_share_of_subsets(ties):
    rng = np.random.default_rng(3)
    classes, labels = rng.integers(0, 5, size=(30, 8)), rng.integers(0, 5, size=30)
    expected = [subsets(c, lambda s, y=y: plurality(s, y, ties)) for c, y in zip(classes, labels, strict=True)]
    assert vote_curve(classes, labels, ties) == pytest.approx(np.array(expected))


@pytest.mark.parametrize(("ties", "share"), [("softmax", 0.5), ("lowest", 0.0)])
def test_vote_curve_of_two_classes_is_binomial(ties, share):
    """E over an image's samples of the vote of K is that of K fresh samples: P(more than half right), ties by rule."""
    samples, p = 12, 0.6
    count = np.arange(samples + 1)
    classes = np.tri(samples + 1, samples, -1, dtype=int)  # row i: i samples of class 1, the label
    scores = vote_curve(classes, np.ones(samples + 1, dtype=int), ties)
    for k in range(1, samples + 1):
        tie = stats.binom.pmf(k / 2, k, p) if k % 2 == 0 else 0.0
        exact = stats.binom.sf(k // 2, k, p) + share * tie
        assert stats.binom.pmf(count, samples, p) @ scores[:, k - 1] == pytest.approx(exact)


def test_vote_curve_of_three_classes_is_multinomial():
    """The vote of 3 of 9 simulated samples against the sum over outcomes of 3 fresh ones."""
    p, rng = np.array([0.4, 0.35, 0.25]), np.random.default_rng(4)
    exact = sum(
        p[list(outcome)].prod() * plurality(np.array(outcome), 0, "softmax")
        for outcome in itertools.product(range(3), repeat=3)
    )
    scores = vote_curve(rng.choice(3, size=(4000, 9), p=p), np.zeros(4000, dtype=int))[:, 2]
    assert abs(scores.mean() - exact) < 4 * scores.std() / np.sqrt(4000)


def test_vote_curve_of_many_samples():
    """76 of 150 right against one rival: between shares by count alone, and 1 at the end; a share is never above 1."""
    classes = np.repeat([0, 1], [76, 74])[None]
    scores = vote_curve(classes, np.zeros(1, dtype=int))[0]
    hypergeometric = [stats.hypergeom.sf(k // 2, 150, 76, k) for k in range(1, 151, 2)]
    assert scores[::2] == pytest.approx(np.array(hypergeometric), rel=1e-9)
    assert scores[-1] == 1
    assert (vote_curve(np.zeros((1, 150), dtype=int), np.zeros(1, dtype=int)) == 1).all()


def test_success_histogram_by_hand():
    right = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 1, 0]])
    assert success_histogram(right) == {"counts": [1, 2, 0, 1, 1], "between": 0.6}
    assert success_histogram(np.stack([right, right]))["counts"] == [2, 4, 0, 2, 2]
    assert success_histogram(np.array([[1], [0], [0]])) == {"counts": [1, 2], "between": 0.0}


def test_curves_of_nothing():
    for samples in (np.zeros(4), np.zeros((0, 3))):
        with pytest.raises(ValueError, match="need draws"):
            worst_curve(samples)
