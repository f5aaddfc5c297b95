"""Parts of EDM's U-Nets (Karras et al. 2022): resampling convolutions and residual blocks, with EDM's tensor names."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.nets.backward import activated, affine
from dp.nets.blocks import attend, double, halve, kernel
from dp.precision import WideLinear


class Conv(nn.Module):
    """A convolution of `size` 1 or 3 (0 for none) after a change of resolution by 2, if `up` or `down`.

    `fused`: the resampling filter follows the convolution instead, and both share one padding.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: int,
        *,
        up: bool = False,
        down: bool = False,
        taps: Sequence[float] = (1, 1),
        fused: bool = False,
        gain: float = 1.0,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c_out, c_in, size, size)) if size else None
        self.bias = nn.Parameter(torch.zeros(c_out)) if size else None
        if self.weight is not None:
            nn.init.xavier_uniform_(self.weight, gain)
        self.resample_filter: Tensor | None
        self.register_buffer("resample_filter", kernel(taps) if up or down else None)
        self.up, self.fused = up, fused

    def forward(self, x: Tensor) -> Tensor:
        w, b, f = self.weight, self.bias, self.resample_filter
        reach = 0 if w is None else w.shape[-1] // 2
        if f is not None:
            f = f.to(x.dtype)
            pad = (f.shape[-1] - 1) // 2
            if self.fused and w is not None and b is not None:
                return halve(affine(F.conv2d, x, w, padding=reach + pad), f, 0) + b[:, None, None]
            x = double(x, f, pad) if self.up else halve(x, f, pad)
        return x if w is None else affine(F.conv2d, x, w, b, padding=reach)


class Block(nn.Module):
    """Norm-SiLU-conv twice with the noise embedding between them, a skip, and, with `heads`, attention over pixels.

    `adaptive`: the embedding scales and shifts the second norm (ADM) instead of being added before it. `skip_scale`:
    factor of both residual sums.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        emb: int,
        *,
        up: bool = False,
        down: bool = False,
        heads: int = 0,
        dropout: float = 0.0,
        adaptive: bool = False,
        skip_scale: float = 1.0,
        norm_eps: float = 1e-5,
        taps: Sequence[float] = (1, 1),
        project: bool = False,
        zero: float = 0.0,
    ):
        super().__init__()
        self.norm0 = norm(c_in, norm_eps)
        self.conv0 = Conv(c_in, c_out, 3, up=up, down=down, taps=taps)
        self.affine = linear(emb, c_out * (2 if adaptive else 1))
        self.norm1 = norm(c_out, norm_eps)
        self.conv1 = Conv(c_out, c_out, 3, gain=zero)
        self.skip = None
        if c_in != c_out or up or down:
            self.skip = Conv(c_in, c_out, 1 if project or c_in != c_out else 0, up=up, down=down, taps=taps)
        if heads:
            self.norm2 = norm(c_out, norm_eps)
            self.qkv = Conv(c_out, 3 * c_out, 1, gain=math.sqrt(0.2) if skip_scale != 1 else 1.0)
            self.proj = Conv(c_out, c_out, 1, gain=zero)
        self.heads, self.dropout, self.adaptive, self.skip_scale = heads, dropout, adaptive, skip_scale

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(activated(self.norm0, F.silu, x))
        e = self.affine(emb)[:, :, None, None].to(h.dtype)  # (b,c,1,1), b = B or 1
        if self.adaptive:
            scale, shift = e.chunk(2, dim=1)
            h = activated(self.norm1, F.silu, h, scale, shift)
        else:
            h = activated(self.norm1, F.silu, h + e)
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.heads:
            qkv = self.qkv(self.norm2(x)).unflatten(1, (self.heads, -1, 3)).flatten(4)  # (B,heads,d,3,pixels)
            a = attend(*qkv.unbind(3)).reshape(x.shape)
            x = (self.proj(a) + x) * self.skip_scale
        return x


def norm(channels: int, norm_eps: float) -> nn.GroupNorm:
    """GroupNorm with groups of at least four channels, at most 32 groups."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=norm_eps)


def linear(c_in: int, c_out: int, bias: bool = True) -> nn.Linear:
    """A linear layer of embeddings, with Xavier-uniform weights and a bias of zero."""
    layer = WideLinear(c_in, c_out, bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
