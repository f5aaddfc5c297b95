"""Adam (Kingma and Ba 2015) over a batch: its steps are plain functions of tensors, each image with its own count."""

from typing import NamedTuple

import torch
from torch import Tensor

from dp.transfer import sent

DECAYS = (0.9, 0.999)  # of the two means
ROOT = 1e-20  # under the root of a step that is differentiated, so that a gradient of zero has a derivative; far below
# what float32 can tell


class Moments(NamedTuple):
    """Running means of Adam."""

    first: Tensor  # (B,...) mean of the gradient ...
    second: Tensor  # (B,...) ... and of its square


def moments(like: Tensor) -> Moments:
    """Zero moments of the shape of `like`."""
    return Moments(torch.zeros_like(like), torch.zeros_like(like))


def adam(before: Moments, slope: Tensor, i: Tensor | int, rate: float, root: float = 0.0) -> tuple[Tensor, Moments]:
    """What to add in order to climb along `slope` (B,...), and the moments afterwards.

    `i`: steps done before, (B,) or one count for all. `root`: is added under the root, see `ROOT`.
    """
    first = DECAYS[0] * before.first + (1 - DECAYS[0]) * slope
    second = DECAYS[1] * before.second + (1 - DECAYS[1]) * slope.square()
    shape = (-1, *[1] * (slope.dim() - 1))
    bias = [one.view(shape) for one in _biases(i, slope)]
    return rate * (first / bias[0]) / ((second / bias[1] + root).sqrt() + 1e-8), Moments(first, second)


def adam_step(z: Tensor, g: Tensor, m: Tensor, v: Tensor, count: int, lr: float) -> tuple[Tensor, Tensor, Tensor]:
    """One step down from z given its gradient g, with exact gradients: the new z, and the new moments m and v.

    `count`: the number of this step, from 1. m and v are zero before the first.
    """
    add, after = adam(Moments(m, v), g, count - 1, lr, ROOT)
    return z - add, after.first, after.second


def _biases(i: Tensor | int, like: Tensor) -> list[Tensor]:
    """1 - decay^(i + 1) of both means, each (1,) or (B,), computed in float64 on the host, beside `like`."""
    found = [1 - decay ** (torch.as_tensor(i).double() + 1) for decay in DECAYS]
    if isinstance(i, Tensor):
        return list(sent(torch.stack(found).to(like.dtype), like.device))
    return [torch.full((1,), one.item(), dtype=like.dtype, device=like.device) for one in found]
