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
        return F.conv2d(input, self.weight * self.mask.to(self.weight), self.bias, padding=self.padding)

    def inner(self, x: Tensor) -> Tensor:
        """The same without padding, of the rows that end with the last one of x."""
        rows = self.weight.shape[2] // 2 + 1  # the others are masked
        return F.conv2d(x, (self.weight * self.mask.to(self.weight))[:, :, :rows], self.bias)


class _Res(nn.Module):
    def __init__(self, width: int, channels: int):
        super().__init__()
        self.narrow = _Masked(width, width // 2, 1, channels, own=True)
        self.conv = _Masked(width // 2, width // 2, 3, channels, own=True)
        self.wide = _Masked(width // 2, width, 1, channels, own=True)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.wide(F.relu(self.conv(F.relu(self.narrow(F.relu(h))))))

    def inner(self, h: Tensor, inside: Tensor) -> Tensor:
        """The same without the first row, the first and the last column. `inside`: 0 for places outside the image."""
        narrow = F.relu(self.narrow(F.relu(h))) * inside
        return h[:, :, 1:, 1:-1] + self.wide(F.relu(self.conv.inner(narrow)))


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
        return self._logits(self.blocks(self.first(x)))

    def at(self, x: Tensor, i: int, j: int) -> Tensor:
        """The logits (B,levels,C) of the pixel in row i and column j alone, from the pixels that matter to it."""
        window = self._window(x, i, j)
        inside = self._window(torch.ones_like(x[:1, :1]), i, j)
        h, margin = self.first.inner(window), 2
        for block in self.blocks:
            assert isinstance(block, _Res)
            h = block.inner(h, inside[:, :, margin:, margin:-margin])
            margin += 1
        return self._logits(h)[..., 0, 0]

    def _window(self, x: Tensor, i: int, j: int) -> Tensor:
        """Rows i - reach ... i and columns j - reach ... j + reach, with zeros outside the image."""
        return F.pad(x, [self.reach, self.reach, self.reach, 0])[
            :, :, i : i + self.reach + 1, j : j + 2 * self.reach + 1
        ]

    def _logits(self, h: Tensor) -> Tensor:
        h = self.logits(F.relu(self.last(F.relu(h))))
        return h.unflatten(1, (self.channels, self.levels)).transpose(1, 2)
