"""What the diffusion U-Nets share: class labels, sinusoidal embeddings, attention over pixels, separable resampling."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.nets.backward import affine


class ClassConditional(nn.Module):
    """A diffusion network that may take the class of each image: net(x, noise label, label), label (B,) int64.

    `classes`: how many there are; 0 where the network has none.
    """

    classes: int


def one_hot(label: Tensor, classes: int, like: Tensor) -> Tensor:
    """(B,) int64 as (B,classes) of the dtype and device of `like`; a row of zeros for a label of -1, no class."""
    return (label.to(like.device)[:, None] == torch.arange(classes, device=like.device)).to(like.dtype)


def wide(labels: Tensor, like: Tensor) -> Tensor:
    """Noise labels in float32, or in float64 if `like` is: a network may be narrower than its labels."""
    return labels.to(torch.promote_types(like.dtype, torch.float32))


def sinusoid(t: Tensor, channels: int, endpoint: bool) -> tuple[Tensor, Tensor]:
    """sin and cos, each (B, channels / 2), of labels t (B,) times 10000^(-j / half) for j = 0 ... half - 1.

    With `endpoint` the last frequency is 1/10000 itself (Vaswani et al. 2017; Ho et al. 2020).
    """
    half = channels // 2
    step = math.log(10_000) / (half - 1 if endpoint else half)
    angle = t[:, None] * torch.exp(-step * torch.arange(half, dtype=t.dtype, device=t.device))
    return angle.sin(), angle.cos()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention softmax(q k / sqrt(d)) v over pixels: q, k, v (B,heads,d,pixels) -> (B,heads,d,pixels).

    It can be differentiated twice, but not in a compiled network.
    """
    q, k, v = (a.transpose(2, 3) for a in (q, k, v))
    differentiated = torch.is_grad_enabled() and q.requires_grad and k.requires_grad and v.requires_grad
    if differentiated and not torch.compiler.is_compiling():
        return _Attention.apply(q, k, v).transpose(2, 3)
    return F.scaled_dot_product_attention(q, k, v).transpose(2, 3)


class _Attention(torch.autograd.Function):
    """torch's attention with a gradient that can itself be differentiated, which torch's fast kernels do not offer.

    Values and first gradients are those of torch's kernel. A gradient taken with `create_graph=True` is computed by the
    formula, from operations that have derivatives of all orders.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.graph = _attention_graph(q, k, v)
        ctx.save_for_backward(q, k, v)
        return ctx.graph[1].detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        q, k, v = ctx.saved_tensors
        if not torch.is_grad_enabled():
            (leaves, out), ctx.graph = ctx.graph or _attention_graph(q, k, v), None  # a backward pass frees it
            return torch.autograd.grad(out, leaves, grads[0].to(out.dtype))
        out = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(dim=3) @ v
        return torch.autograd.grad(out.to(grads[0].dtype), (q, k, v), grads[0], create_graph=True)


def _attention_graph(q: Tensor, k: Tensor, v: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Leaves with the values of q, k, v, and their attention by torch's kernel with its graph."""
    with torch.enable_grad():
        q, k, v = leaves = tuple(a.detach().requires_grad_() for a in (q, k, v))
        return leaves, F.scaled_dot_product_attention(q, k, v)


def kernel(taps: Sequence[float], like: Tensor | None = None) -> Tensor:
    """The separable filter of n taps as a (1,1,n,n) tensor whose sum is 1, of the dtype and device of `like`."""
    row = torch.as_tensor(taps, dtype=torch.float32 if like is None else like.dtype)
    f = torch.outer(row, row) / row.sum() ** 2
    return f[None, None] if like is None else f[None, None].to(like.device)


def halve(x: Tensor, f: Tensor, padding: int) -> Tensor:
    """Filter x (B,C,H,W) with f (1,1,n,n) and keep every other pixel."""
    return affine(F.conv2d, x, f.expand(x.shape[1], 1, -1, -1), groups=x.shape[1], stride=2, padding=padding)


def double(x: Tensor, f: Tensor, padding: int) -> Tensor:
    """Put zeros between the pixels of x (B,C,H,W) and filter it with f (1,1,n,n) times 4: twice the side."""
    weight = (4 * f).expand(x.shape[1], 1, -1, -1)
    return affine(F.conv_transpose2d, x, weight, groups=x.shape[1], stride=2, padding=padding)
