"""Random changes of training images, with noise from the training's generator."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Augment = Callable[[Tensor, Generator], Tensor]


def shift(x: Tensor, generator: Generator, *, reach: int, mode: str) -> Tensor:
    """Move each image of x (B,C,H,W) by up to `reach` pixels along both axes. `mode`: how F.pad fills the border."""
    b, c, h, w = x.shape
    padded = F.pad(x, [reach] * 4, mode=mode)
    dy, dx = torch.randint(0, 2 * reach + 1, (2, b), generator=generator)
    rows = (dy[:, None] + torch.arange(h))[:, None, :, None].expand(b, c, h, w + 2 * reach)
    cols = (dx[:, None] + torch.arange(w))[:, None, None, :].expand(b, c, h, w)
    return padded.gather(2, rows).gather(3, cols)


def flip(x: Tensor, generator: Generator) -> Tensor:
    """Mirror each image of x (B,C,H,W) left to right with probability 1/2."""
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, x.flip(3), x)
