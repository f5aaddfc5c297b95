"""A small autoregressive network with masked convolutions (van den Oord et al. 2016, arXiv 1601.06759)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Masked(nn.Conv2d):
    """A convolution that sees the pixels above, those to the left, and earlier channels of the pixel itself.

    Features are in `channels` equal groups, one for each channel of the image. `own`: whether a group also sees itself
    at the pixel.
    """

    def __init__(self, c_in: int, c_out: int, size: int, channels: int, own: bool):
        super().__init__(c_in, c_out, size, padding=size // 2)
        middle, mask = size // 2, torch.ones(c_out, c_in, size, size)
        mask[:, :, middle + 1 :] = 0
        mask[:, :, middle, middle + 1 :] = 0
        after = torch.arange(c_out)[:, None] * channels // c_out - torch.arange(c_in)[None] * channels // c_in
        mask[:, :, middle, middle] = (after >= (0 if own else 1)).float()
        self.mask: Tensor
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight * self.mask, self.bias, padding=self.padding)


class _Res(nn.Module):
    def __init__(self, width: int, channels: int):
        super().__init__()
        self.narrow = _Masked(width, width // 2, 1, channels, own=True)
        self.conv = _Masked(width // 2, width // 2, 3, channels, own=True)
        self.wide = _Masked(width // 2, width, 1, channels, own=True)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.wide(F.relu(self.conv(F.relu(self.narrow(F.relu(h))))))


class MaskedConvNet(nn.Module):
    """Logits (B,levels,C,H,W) of the level of each value of images (B,C,H,W) in [-1,1], given the values before it.

    The order is that of pixels, row by row, and of channels within a pixel. `width`: a multiple of 2 C. `blocks`: of
    residual blocks. `reach`: how many pixels away a value can matter, on each side.
    """

    def __init__(self, channels: int = 1, levels: int = 33, width: int = 32, blocks: int = 4):
        super().__init__()
        if width % (2 * channels):
            raise ValueError(f"need width as a multiple of 2 x channels, got width={width}, channels={channels}")
        self.channels, self.levels, self.reach = channels, levels, 2 + blocks
        self.first = _Masked(channels, width, 5, channels, own=False)
        self.blocks = nn.Sequential(*(_Res(width, channels) for _ in range(blocks)))
        self.last = _Masked(width, width, 1, channels, own=True)
        self.logits = _Masked(width, channels * levels, 1, channels, own=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.logits(F.relu(self.last(F.relu(self.blocks(self.first(x))))))
        return h.unflatten(1, (self.channels, self.levels)).transpose(1, 2)
