"""What R draws of every image say of fewer: worst of M, vote of K, how often the attack succeeds. Pure functions."""

import functools
import math

import numpy as np


def worst_curve(right: np.ndarray) -> np.ndarray:
    """(images,R) scores for M = 1..R from (images,R) or (seeds,images,R) verdicts: the share of subsets of M draws that
    are right throughout, C(R - f, M) / C(R, M) with f draws wrong, over several seeds their mean.

    Unbiased for the chance that M fresh draws are all right; the plug-in (1 - f / R)^M is not (DiffHammer, theorem 2).
    The mean over images is the curve.
    """
    right = _by_seed(right)
    draws = right.shape[-1]
    count, before = (right != 0).sum(axis=-1, keepdims=True), np.arange(draws)
    return np.cumprod(np.maximum(count - before, 0) / (draws - before), axis=-1).mean(axis=0)


def vote_curve(classes: np.ndarray, labels: np.ndarray, ties: str = "softmax") -> np.ndarray:
    """(images,R) scores for K = 1..R from the class of every draw, (images,R) or (seeds,images,R), and (images,)
    labels: the share of subsets of K draws whose plurality is the label, counted exactly; over seeds their mean.

    `ties` as in `metrics.vote`: `lowest` gives them to the lowest class; `softmax` needs logits, which classes do not
    have: a tie of T classes then counts 1/T. Without ties K = R is the vote of all draws. The mean over images is the
    curve.
    """
    found = []
    for seed in _by_seed(classes):
        for draws, label in zip(seed, labels, strict=True):
            values, counts = np.unique(draws, return_counts=True)
            mine = int(counts[values == label].sum())
            others = [(int(c), bool(v < label) and ties == "lowest") for v, c in zip(values, counts, strict=True)]
            rivals = sorted(other for other, v in zip(others, values, strict=True) if v != label)
            found.append(_wins(mine, tuple(rivals), ties == "lowest"))
    return np.reshape(found, (-1, *classes.shape[-2:])).mean(axis=0)


def success_histogram(right: np.ndarray) -> dict:
    """How often an attack succeeds, q = f / R of the R draws of an image wrong, from (images,R) or (seeds,images,R)
    verdicts; the same image under another seed counts again.

    `counts`: images with q = 0, 1/R, .. 1; `between`: share of them with 0 < q < 1, whose single draw is noisy.
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
def _wins(mine: int, rivals: tuple[tuple[int, bool], ...], lowest: bool) -> np.ndarray:
    """(R,) share of subsets of K draws that the label wins, by its count and its rivals' (count, wins a tie with it).

    Subsets in which the label has k draws: the generating function of what rivals add, at most k draws each (k - 1 for
    those that win ties), one row per number of rivals with exactly k.
    """
    draws = mine + sum(count for count, _ in rivals)
    won = np.zeros(draws + 1)
    for k in range(1, mine + 1):
        reach = 1 + sum(count >= k for count, _ in rivals)
        ways = np.zeros((reach, draws + 1 - k))  # (tied rivals, draws of rivals)
        ways[0, 0] = 1
        for count, wins in rivals:
            added = np.zeros_like(ways)
            for j in range(min(count, k - wins) + 1):
                up = int(j == k and not lowest)
                added[up:, j:] += float(math.comb(count, j)) * ways[: reach - up, : draws + 1 - k - j]
            ways = added
        won[k:] += float(math.comb(mine, k)) * (ways / np.arange(1, reach + 1)[:, None]).sum(axis=0)
    subsets = np.array([float(math.comb(draws, k)) for k in range(1, draws + 1)])
    return np.minimum(won[1:] / subsets, 1.0)
