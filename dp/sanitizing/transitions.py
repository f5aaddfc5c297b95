"""Steps 2 and 3 of DataElixir (Zhou et al. 2024): label transitions, and the classes whose transitions stand out.

The table `labels` (N,1+S) has the classifier's label of every image in column 0, and those of its S states after it.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAD_SCALE = 1.4826  # makes the median absolute deviation of a Gaussian its standard deviation
TINY = 1e-6  # of the released code, so that a deviation of 0 divides


class Candidates(NamedTuple):
    """What the states of each image say.

    `states`: (N,1+S) bool, which of an image and its states are candidates; the image itself always is. `majority`:
    (N,) the most frequent label of the states. `unanimous`: (N,) bool, all candidates but the image have one label.
    `transition`: (N,) bool, not all candidates have one label.
    """

    states: Tensor
    majority: Tensor
    unanimous: Tensor
    transition: Tensor


def candidates(labels: Tensor, second: int) -> Candidates:
    """The candidates of images with labels (N,1+S).

    `second`: if the second most frequent label of the states occurs at least so often, all states are candidates, else
    those with the most frequent label. Of equally frequent labels the one that comes first counts as the most frequent.
    """
    own, states = labels[:, :1], labels[:, 1:]
    hot = F.one_hot(states, int(labels.max()) + 2)  # (N,S,K) with K >= 2
    counts, length = hot.sum(1), states.shape[1]  # (N,K)
    first = hot.argmax(1)  # (N,K) the place of a label's first occurrence
    majority = (counts * (length + 1) + (length - first) * (counts > 0)).argmax(1)
    every = (counts.topk(2, dim=1).values[:, 1] >= second)[:, None]
    chosen = (states == majority[:, None]) | every
    unanimous = ((states == majority[:, None]) | ~chosen).all(1)
    transition = ~unanimous | (own[:, 0] != majority)
    return Candidates(torch.cat([torch.ones_like(own, dtype=torch.bool), chosen], 1), majority, unanimous, transition)


def divergences(labels: Tensor, found: Candidates, y: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The divergence (K,) of each of `classes` (K,): KL from the one-hot distribution of the class to the labels of the
    candidates; and (K,) bool, the classes whose own label no candidate has.

    Only images with a transition count, by their given labels y (N,). The divergence is -log of the share of the class
    itself among these labels.
    """
    result, lost = torch.zeros(len(classes), dtype=torch.float64), torch.zeros(len(classes), dtype=torch.bool)
    for k, label in enumerate(classes.tolist()):
        mine = found.transition & (y == label)
        seen = labels[mine][found.states[mine]]
        # Differs: a class without transitions has divergence 0 (deviation 160: classes without transitions).
        if len(seen):
            own = int((seen == label).sum())
            # Differs: at least half a label of its own (deviation 161: an infinite divergence).
            result[k], lost[k] = math.log(len(seen) / max(own, 0.5)), not own
    return result, lost


def scores(values: Tensor) -> Tensor:
    """How far each of K values is from their median, in robust standard deviations (K,)."""
    off = (values - median(values)).abs()
    return off / MAD_SCALE / (median(off) + TINY)


def median(values: Tensor) -> Tensor:
    """The median; of an even number of values, the mean of the two in the middle."""
    return values.quantile(0.5)


class Found(NamedTuple):
    """The result of steps 2 and 3, from labels alone.

    `candidates`: see there. `classes`: (K,), those of the set. `divergence`, `score`: (K,) of each class. `flagged`:
    the labels of the classes whose score is above the threshold, and of those whose own label no candidate has, if they
    are fewer than half of the classes. `sure`, `suspicious`: (N,) bool, images of flagged classes with a transition,
    whose states agree on one label, and whose states do not. All other images stay as they are.
    """

    candidates: Candidates
    classes: Tensor
    divergence: Tensor
    score: Tensor
    flagged: Tensor
    sure: Tensor
    suspicious: Tensor


def find(labels: Tensor, y: Tensor, second: int, threshold: float) -> Found:
    """Which images of a set with given labels y (N,) are changed, from the table `labels` (N,1+S)."""
    found, classes = candidates(labels, second), y.unique()
    divergence, lost = divergences(labels, found, y, classes)
    score = scores(divergence)
    flagged = classes[(score > threshold) | (lost & (2 * lost.sum() < len(classes)))]
    changed = torch.isin(y, flagged) & found.transition
    sure, suspicious = changed & found.unanimous, changed & ~found.unanimous
    return Found(found, classes, divergence, score, flagged, sure, suspicious)
