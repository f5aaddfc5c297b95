"""Adam (Kingma and Ba 2015) over a per-image state, for attacks that climb in something else than pixels."""

from typing import NamedTuple

import torch
from torch import Tensor

DECAYS = (0.9, 0.999)  # of the two means


class Moments(NamedTuple):
    """Running means of Adam."""

    first: Tensor  # (B,...) mean of the gradient ...
    second: Tensor  # (B,...) ... and of its square


def moments(like: Tensor) -> Moments:
    """Zero moments of the shape of `like`."""
    return Moments(torch.zeros_like(like), torch.zeros_like(like))


def adam(before: Moments, slope: Tensor, i: Tensor, rate: float) -> tuple[Tensor, Moments]:
    """What to add in order to climb along `slope` (B,...), and the moments afterwards. `i` (B,): steps done before."""
    first = DECAYS[0] * before.first + (1 - DECAYS[0]) * slope
    second = DECAYS[1] * before.second + (1 - DECAYS[1]) * slope.square()
    shape = (-1, *[1] * (slope.dim() - 1))
    bias = [(1 - decay ** (i + 1).double()).to(slope).view(shape) for decay in DECAYS]
    return rate * (first / bias[0]) / ((second / bias[1]).sqrt() + 1e-8), Moments(first, second)
