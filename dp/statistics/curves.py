"""Curves over the number of samples: worst of M, vote of K, and how often an attack succeeds. Pure functions."""

import functools
import math

import numpy as np


def worst_curve(right: np.ndarray) -> np.ndarray:
    """Worst-of-M scores (images,R) for M = 1..R from R samples of every image.

    `right`: (images,R) or (seeds,images,R), nonzero where a sample is right; over seeds scores are averaged.
    A score is the share of subsets of M samples that are all right: C(R - f, M) / C(R, M) with f samples wrong. It is
    an unbiased estimate of the chance that M fresh samples are all right, which the plug-in (1 - f / R)^M is not
    (DiffHammer, Theorem 2). The mean over images is the curve. Raises ValueError for other shapes.
    """
    right = _by_seed(right)
    draws = right.shape[-1]
    count, before = (right != 0).sum(axis=-1, keepdims=True), np.arange(draws)
    return np.cumprod(np.maximum(count - before, 0) / (draws - before), axis=-1).mean(axis=0)


def vote_curve(classes: np.ndarray, labels: np.ndarray, ties: str = "softmax") -> np.ndarray:
    """Vote-of-K scores (images,R) for K = 1..R from R samples of every image.

    `classes`: the predicted class of every sample, (images,R) or (seeds,images,R); over seeds scores are averaged.
    `labels`: (images,). A score is the share of subsets of K samples whose plurality is the label, counted exactly.
    `ties`: `lowest` gives a tie to the lowest class. `softmax` would need logits, so that a tie of T classes counts
    1/T. Without ties K = R is the vote of all samples. The mean over images is the curve. Raises ValueError for other
    shapes.
    """
    scores = []
    for seed in _by_seed(classes):
        for draws, label in zip(seed, labels, strict=True):
            values, counts = np.unique(draws, return_counts=True)
            own = int(counts[values == label].sum())
            others = [(int(c), bool(v < label) and ties == "lowest") for v, c in zip(values, counts, strict=True)]
            rivals = sorted(other for other, v in zip(others, values, strict=True) if v != label)
            scores.append(_wins(own, tuple(rivals), ties == "lowest"))
    return np.reshape(scores, (-1, *classes.shape[-2:])).mean(axis=0)


def success_histogram(right: np.ndarray) -> dict:
    """How often an attack succeeds on an image: q = f / R, with f of its R samples wrong.

    `right`: (images,R) or (seeds,images,R), nonzero where a sample is right; an image counts once for every seed.
    Returns `counts`, the number of images with q = 0, 1/R, ..., 1, and `between`, the share of images with 0 < q < 1,
    for which the verdict of a single sample is random. Raises ValueError for other shapes.
    """
    right = _by_seed(right)
    draws = right.shape[-1]
    counts = np.bincount((right == 0).sum(axis=-1).ravel(), minlength=draws + 1)
    return {"counts": counts.tolist(), "between": float(counts[1:-1].sum() / counts.sum())}


def _by_seed(draws: np.ndarray) -> np.ndarray:
    if draws.ndim not in (2, 3) or not draws.size:
        raise ValueError(f"need draws (images,R) or (seeds,images,R), got shape {draws.shape}")
    return draws.reshape(-1, *draws.shape[-2:])


@functools.lru_cache(maxsize=4096)
def _wins(own: int, rivals: tuple[tuple[int, bool], ...], lowest: bool) -> np.ndarray:
    """The share (R,) of subsets of K samples that the label wins.

    `own`: how many samples predict the label. `rivals`: for every other class its count and whether it wins ties.
    Subsets with k samples of the label are counted by the generating function of what the rivals add: at most k samples
    each (k - 1 for those that win ties), with one row for every number of rivals that have exactly k.
    """
    draws = own + sum(count for count, _ in rivals)
    won = np.zeros(draws + 1)
    for k in range(1, own + 1):
        reach = 1 + sum(count >= k for count, _ in rivals)
        ways = np.zeros((reach, draws + 1 - k))  # (tied rivals, draws of rivals)
        ways[0, 0] = 1
        for count, wins in rivals:
            added = np.zeros_like(ways)
            for j in range(min(count, k - wins) + 1):
                up = int(j == k and not lowest)
                added[up:, j:] += float(math.comb(count, j)) * ways[: reach - up, : draws + 1 - k - j]
            ways = added
        won[k:] += float(math.comb(own, k)) * (ways / np.arange(1, reach + 1)[:, None]).sum(axis=0)
    subsets = np.array([float(math.comb(draws, k)) for k in range(1, draws + 1)])
    return np.minimum(won[1:] / subsets, 1.0)
