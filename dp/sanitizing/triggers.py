"""Triggers of backdoor attacks, as functions of images x (B,C,H,W) in [0,1] that return images of the same shape."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def patch(x: Tensor, *, side: int, values: Sequence[float]) -> Tensor:
    """BadNets (Gu et al. 2017): a square in the lower right corner.

    `side`: of the square, in pixels. `values`: its brightness in [0,1] by channel, or one value for all channels.
    Raises ValueError for a square that does not fit, for values outside [0,1] and for another number of them.
    """
    if not 1 <= side <= min(x.shape[2:]):
        raise ValueError(f"need 1 <= side <= {min(x.shape[2:])}, the side of the images, got side={side}")
    if len(values) not in (1, x.shape[1]) or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"need 1 or {x.shape[1]} values in [0, 1], one per channel, got values={list(values)}")
    marked = x.clone()
    marked[:, :, -side:, -side:] = torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1)
    return marked


def blended(x: Tensor, *, share: float, seed: int) -> Tensor:
    """Blended injection (Chen et al. 2017): (1 - share) x + share pattern. The pattern is uniform noise.

    `share`: in (0,1]. `seed`: of the pattern, which is the same for all images. Raises ValueError for another `share`.
    """
    if not 0 < share <= 1:
        raise ValueError(f"need 0 < share <= 1, got share={share}")
    pattern = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(seed)).to(x)  # (C,H,W)
    return (1 - share) * x + share * pattern


def sinusoidal(x: Tensor, *, delta: float, frequency: float) -> Tensor:
    """The sinusoidal signal of Barni et al. 2019: x + delta sin(2 pi j frequency / W) in column j, clamped to [0,1].

    `delta`: in units of x. `frequency`: periods in the width of the image. Raises ValueError unless both are positive.
    """
    if not (delta > 0 and frequency > 0):
        raise ValueError(f"need delta > 0 and frequency > 0, got delta={delta}, frequency={frequency}")
    width = x.shape[3]
    signal = torch.sin(2 * math.pi * frequency / width * torch.arange(width, dtype=torch.float64)).to(x)  # (W,)
    return (x + delta * signal).clamp(0.0, 1.0)
