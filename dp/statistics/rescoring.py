"""An exact test of whether two scorings of the same images come from the same defense. Pure functions."""

import functools
import math

import numpy as np


def collapsed(first: np.ndarray, second: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The counts of right samples and the number of samples, where the samples of an image may be one decision.

    `first`, `second`: (n,) whole numbers, the right samples of each image among `samples`. If all samples of every
    image agree in both scorings, the defense draws no noise, and an image counts as one sample.
    """
    both = np.concatenate([first, second])
    if np.isin(both, (0, samples)).all():
        return first // samples, second // samples, 1
    return first, second, samples


def chance(first: np.ndarray, second: np.ndarray, samples: int) -> float:
    """Exact two-sided p-value of the hypothesis that fresh noise alone divides the right samples between two scorings.

    `first`, `second`: (n,) whole numbers, the right samples of each attacked image among `samples`. An image under
    another seed is another attacked image.

    The samples of an image are no independent draws of the accuracy: they share the image. The test is therefore
    conditional on each image's number f of right samples in both scorings together. If the two scorings draw their
    noise alike and independently of the image, any R = `samples` of these 2R samples are equally likely to be the
    first. So the first scoring has a hypergeometric number of the f right ones, independently for every image, and the
    sum over images has the convolution of these distributions. No model of the chances of the images is needed, and
    images on which all samples agree do not count. With one sample this is McNemar's exact test. p <= alpha has a
    probability of at most alpha. Raises ValueError for counts that do not fit.
    """
    first, second = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    if first.shape != second.shape or first.ndim != 1 or samples < 1:
        raise ValueError(f"need one count for each image in both scorings, got {first.shape} and {second.shape}")
    if (
        min(first.min(initial=0), second.min(initial=0)) < 0
        or max(first.max(initial=0), second.max(initial=0)) > samples
    ):
        raise ValueError(f"need counts from 0 to {samples} samples, got others")
    first, second, samples = collapsed(first, second, samples)
    totals = (first + second).tolist()
    laws = [_hypergeometric(f, samples) for f in totals if 0 < f < 2 * samples]
    while len(laws) > 1:  # in pairs, because that takes less time than one after another
        odd = laws[len(laws) // 2 * 2 :]
        laws = [np.convolve(*pair) for pair in zip(laws[::2], laws[1::2], strict=False)] + odd
    pmf = laws[0] if laws else np.ones(1)
    found = int(first.sum()) - sum(max(0, f - samples) for f in totals)
    return float(min(1.0, 2 * min(pmf[: found + 1].sum(), pmf[found:].sum())))


@functools.lru_cache(maxsize=1024)
def _hypergeometric(f: int, samples: int) -> np.ndarray:
    """The chances that R of 2R samples, f of them right, have max(0, f - R), ..., min(f, R) right ones."""
    counts = range(max(0, f - samples), min(f, samples) + 1)
    ways = [math.comb(f, k) * math.comb(2 * samples - f, samples - k) for k in counts]
    return np.array([way / math.comb(2 * samples, samples) for way in ways])
