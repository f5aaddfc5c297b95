"""Pieces that the diffusion U-Nets share: sinusoidal embeddings, attention over pixels, separable resampling."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sinusoid(t: Tensor, channels: int, endpoint: bool) -> tuple[Tensor, Tensor]:
    """sin and cos, each (B, channels / 2), of labels t (B,) times 10000^(-j / half) for j = 0 ... half - 1; with
    `endpoint` the last frequency is 1/10000 itself (Vaswani et al. 2017; Ho et al. 2020).
    """
    half = channels // 2
    step = math.log(10_000) / (half - 1 if endpoint else half)
    angle = t[:, None] * torch.exp(-step * torch.arange(half, dtype=t.dtype, device=t.device))
    return angle.sin(), angle.cos()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k / sqrt(d)) v for q, k, v (B,heads,d,pixels), each pixel a token -> (B,heads,d,pixels)."""
    q, k, v = (a.transpose(2, 3) for a in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(2, 3)


def kernel(taps: Sequence[float], like: Tensor | None = None) -> Tensor:
    """The separable filter of these taps as a (1,1,n,n) tensor of sum 1."""
    row = torch.as_tensor(taps, dtype=torch.float32 if like is None else like.dtype)
    f = torch.outer(row, row) / row.sum() ** 2
    return f[None, None] if like is None else f[None, None].to(like.device)


def halve(x: Tensor, f: Tensor, padding: int) -> Tensor:
    """Every other pixel of x (B,C,H,W) after the filter f (1,1,n,n)."""
    return F.conv2d(x, f.expand(x.shape[1], 1, -1, -1), groups=x.shape[1], stride=2, padding=padding)


def double(x: Tensor, f: Tensor, padding: int) -> Tensor:
    """x (B,C,H,W) with zeros put between its pixels, then the filter f (1,1,n,n) times 4."""
    weight = (4 * f).expand(x.shape[1], 1, -1, -1)
    return F.conv_transpose2d(x, weight, groups=x.shape[1], stride=2, padding=padding)
