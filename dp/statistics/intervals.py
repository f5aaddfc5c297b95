"""Intervals over images and paired tests on the same images, as pure functions. Scores are in [0,1], one per image.

n counts images, whatever the number of samples and seeds. Samples of an image are never resampled alone, because such
intervals cover the truth far too rarely. scripts/studies/interval_coverage.py measures the coverage.
"""

import math

import numpy as np

Z95 = 1.959963984540054
BOOTSTRAPS = 10_000


def wilson(share: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval (low, high) for a share in [0,1] of n independent images (Wilson 1927).

    n may be an effective number of images, which is not an integer. Raises ValueError for other values.
    """
    if not 0 <= share <= 1 or n < 1:
        raise ValueError(f"need a share in [0, 1] of n >= 1 images, got share={share}, n={n}")
    center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low = 0.0 if share == 0 else max(0.0, center - half)
    high = 1.0 if share == 1 else min(1.0, center + half)
    return low, high


def interval(scores: np.ndarray) -> tuple[float, float]:
    """95 % interval (low, high) of the expected score, from (n,) scores in [0,1], one per image.

    A score is a verdict (0 or 1), a share of right samples, or a mean over seeds. The interval is Wilson's with the
    effective number of images n p(1-p) / s^2, where p is the mean and s^2 the variance of the scores, as for surveys
    with a design effect (Korn and Graubard 1998). For verdicts it is Wilson's own interval. The sum of squares of one
    image at 1/2 is added to both variances, so that a few fractions near 0 or 1 are hardly more certain than verdicts.
    """
    n, p = len(scores), float(np.mean(scores))
    effect = (float(np.square(scores - p).sum()) + 0.25) / (n * p * (1 - p) + 0.25)  # design effect: 1 for verdicts
    return wilson(p, n / effect)


def bootstrap(scores: np.ndarray, replicates: int = BOOTSTRAPS) -> tuple[float, float]:
    """95 % percentile interval (low, high) of the mean of (n,) values, one per image.

    Images are resampled, each with all of its samples. The generator's seed is fixed.
    """
    rng = np.random.default_rng(0)
    step = max(1, 2_000_000 // len(scores))  # replicates at a time
    means = [
        scores[rng.integers(len(scores), size=(min(step, replicates - first), len(scores)))].mean(axis=1)
        for first in range(0, replicates, step)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test (McNemar 1947) for two (n,) arrays of 0 and 1 over the same images.

    Under the null hypothesis, each image on which they differ favors either with equal chance. Without a difference the
    p-value is 1.
    Raises ValueError for shapes that differ, no image, or values other than 0 and 1.
    """
    a, b = _pair(first, second)
    if not np.isin(np.concatenate([a, b]), (0, 1)).all():
        raise ValueError("need verdicts of 0 and 1, got fractions: compare scores with `paired`")
    won, lost = int((b > a).sum()), int((a > b).sum())
    if not won + lost:
        return 1.0
    from scipy.stats import binomtest  # imported here because it takes long

    return float(binomtest(won, won + lost).pvalue)


def paired(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Mean of second - first over the same images, and the ends of its 95 % bootstrap interval.

    `first`, `second`: (n,) scores in [0,1]. Images are resampled, each with both scores. The generator's seed is fixed.
    Raises ValueError for shapes that differ, no image, or scores outside [0,1].
    """
    a, b = _pair(first, second)
    low, high = bootstrap(b - a)
    return float((b - a).mean()), low, high


def _pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"need one score per image of the same images, got shapes {a.shape} and {b.shape}")
    both = np.concatenate([a, b])
    if not ((both >= 0) & (both <= 1)).all():  # NaN compares false
        raise ValueError(f"need scores in [0, 1], got {both.min()} to {both.max()}")
    return a, b
