"""A small U-Net for 16x16 images: pixel-unshuffle by 2, two resolutions, feature-wise modulation by the noise level."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.nets.backward import Conv2d, activated
from dp.nets.blocks import ClassConditional, one_hot
from dp.precision import WideLinear


class _Res(nn.Module):
    """GroupNorm-SiLU-conv twice; the noise embedding scales and shifts the second norm."""

    def __init__(self, c_in: int, c_out: int, emb: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, c_in)
        self.conv1 = Conv2d(c_in, c_out, 3, padding=1)
        self.affine = WideLinear(emb, 2 * c_out)
        self.norm2 = nn.GroupNorm(8, c_out)
        self.conv2 = Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else Conv2d(c_in, c_out, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.affine(emb)[:, :, None, None].to(h.dtype).chunk(2, dim=1)  # (b,c,1,1), b = B or 1
        r = self.conv1(activated(self.norm1, F.silu, h))
        r = self.conv2(activated(self.norm2, F.silu, r, scale, shift))
        return self.skip(h) + r


class SmallUNet(ClassConditional):
    """(B,C,H,W), H and W a multiple of 4, and noise labels (b,), b = B or 1 -> (B,C,H,W).

    `classes`: of a class-conditional network. Its `label` is (B,) int64, and -1 stands for no class; without labels no
    image has a class.
    """

    def __init__(self, channels: int = 1, width: int = 32, wide: int = 48, emb: int = 64, classes: int = 0):
        super().__init__()
        self.classes = classes
        self.freqs: Tensor
        self.register_buffer("freqs", torch.exp(torch.linspace(math.log(0.25), math.log(16.0), emb // 2)))
        self.embed = nn.Sequential(WideLinear(emb, emb), nn.SiLU(), WideLinear(emb, emb), nn.SiLU())
        self.first = Conv2d(4 * channels, width, 3, padding=1)
        self.enc = _Res(width, width, emb)
        self.down = Conv2d(width, wide, 3, stride=2, padding=1)
        self.mid1 = _Res(wide, wide, emb)
        self.mid2 = _Res(wide, wide, emb)
        self.up = Conv2d(wide, 4 * width, 1)
        self.dec = _Res(2 * width, width, emb)
        self.norm = nn.GroupNorm(8, width)
        self.last = Conv2d(width, 4 * channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # pyright: ignore[reportArgumentType]
        self.map_label = WideLinear(classes, emb, bias=False) if classes else None

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        angle = noise[:, None] * self.freqs
        emb = self.embed(torch.cat([angle.cos(), angle.sin()], dim=1))
        if self.map_label is not None and label is not None:
            emb = emb + self.map_label(one_hot(label, self.classes, emb))
        skip = self.enc(self.first(F.pixel_unshuffle(x, 2)), emb)  # (B,32,8,8)
        h = self.mid2(self.mid1(self.down(skip), emb), emb)  # (B,48,4,4)
        h = self.dec(torch.cat([F.pixel_shuffle(self.up(h), 2), skip], dim=1), emb)
        return F.pixel_shuffle(self.last(activated(self.norm, F.silu, h)), 2)
