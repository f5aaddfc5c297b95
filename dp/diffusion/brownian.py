"""A Brownian path per image that gives the same increments in whatever order they are read: torchsde's `bm`."""

import bisect
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dp.rng import Streams

CLOSE = 1e-9  # times that differ by less count as equal


class Brownian:
    """Increments W(tb) - W(ta), (B,d), between any two of the times that it was made with.

    An increment over a step of `grid` is sqrt(step) times the next `randn_like` of `rng`. A solver that draws its own
    noise step by step from equal streams therefore follows the same path. `between` are further times, such as the grid
    of the backward solve. They are joined to that path by Brownian bridges, whose noise is drawn last. All increments
    are stored: (len(grid) + len(between)) x (B,d).
    """

    levy_area_approximation = "none"

    def __init__(self, rng: Streams, like: Tensor, grid: Sequence[float], between: Sequence[float] = ()):
        """`like`: (B,d), gives shape, dtype and device of the increments. `grid`: rising times, else ValueError."""
        if not all(a + CLOSE < b for a, b in pairwise(grid)):
            raise ValueError("need a grid of rising times")
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device
        self.times, self.increments = [grid[0]], []
        whole = [math.sqrt(b - a) * rng.randn_like(like) for a, b in pairwise(grid)]
        for (a, b), rest in zip(pairwise(grid), whole, strict=True):
            left = a
            for s in sorted(t for t in between if a + CLOSE < t < b - CLOSE):
                if s - left < CLOSE:
                    continue
                share, spread = (s - left) / (b - left), math.sqrt((s - left) * (b - s) / (b - left))
                part = share * rest + spread * rng.randn_like(like)  # W(s) - W(left), given W(b) - W(left)
                self._append(s, part)
                left, rest = s, rest - part
            self._append(b, rest)

    def _append(self, t: float, increment: Tensor) -> None:
        self.times.append(t)
        self.increments.append(increment)

    def __call__(self, ta, tb, return_U=False, return_A=False) -> Tensor:
        """W(tb) - W(ta), (B,d). `ta` <= `tb`: floats or 0-dim tensors, else ValueError.

        The other arguments are torchsde's; Euler's method does not need what they ask for.
        """
        assert not return_U, "space-time Levy area is not offered"
        assert not return_A, "Levy area is not offered"
        first, last = self._index(float(ta)), self._index(float(tb))
        if last <= first:
            return torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        total = self.increments[first]
        for i in range(first + 1, last):
            total = total + self.increments[i]
        return total

    def _index(self, t: float) -> int:
        i = bisect.bisect_left(self.times, t - CLOSE)
        if i == len(self.times) or abs(self.times[i] - t) > CLOSE:
            raise ValueError(f"need a time that the path was made with, got {t}")
        return i
