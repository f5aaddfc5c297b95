"""Layers that keep little for the backward pass where their weights are frozen.

Autograd keeps the input of every convolution, which only the gradient of its weights needs, and the output of every
norm, which can be computed again from the norm's input. Here it keeps neither. Only what is kept changes, not the
graph: values and derivatives of every order have the same bits. All is kept where weights need a gradient, under
autocast, and in compiled networks, where the compiler chooses what is kept.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, padded with zeros, that keeps no input if its weights are frozen."""

    def forward(self, input: Tensor) -> Tensor:
        how = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return affine(F.conv2d, input, self.weight, self.bias, **how)


class Conv1d(nn.Conv1d):
    """`nn.Conv1d`, padded with zeros, that keeps no input if its weights are frozen."""

    def forward(self, input: Tensor) -> Tensor:
        how = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return affine(F.conv1d, input, self.weight, self.bias, **how)


def affine(function: Callable[..., Tensor], x: Tensor, *constants: Any, **how: Any) -> Tensor:
    """function(x, *constants, **how), such as a convolution of x with weights. It must be affine in x: then its
    derivatives need the constants, and of x only the shape, which is all that is kept.

    The backward pass gets a tensor with the shape and strides of x, whose numbers it does not use.
    """
    if _all_kept(x, (c for c in constants if isinstance(c, Tensor))):
        return function(x, *constants, **how)

    def pack(saved: Tensor) -> Tensor | tuple:
        constant = any(saved is c for c in constants)
        return saved if constant else (saved.shape, saved.stride(), saved.dtype, saved.device)

    def unpack(kept: Tensor | tuple) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        shape, stride, dtype, device = kept
        return torch.empty_strided(shape, stride, dtype=dtype, device=device)

    with saved_tensors_hooks(pack, unpack):
        return function(x, *constants, **how)


def activated(
    norm: nn.Module,
    act: Callable[[Tensor], Tensor],
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """act(norm(x)) or, with a modulation, act(shift + norm(x) * (scale + 1)): x (B,C,H,W), scale and shift (b,C,1,1),
    b = B or 1. The backward pass computes the input of `act` again from x, if the norm is in evaluation mode.

    `act`: an activation whose derivative needs its input, such as SiLU, or an `nn.ReLU`.
    """

    def normed(x: Tensor) -> Tensor:
        h = norm(x)
        return h if scale is None or shift is None else torch.addcmul(shift, h, scale + 1)

    h = normed(x)
    if norm.training or not h.requires_grad or _all_kept(x, norm.parameters()):
        return act(h)
    given = x.detach()

    def again(_: None) -> Tensor:
        with torch.no_grad():
            h = normed(given)
            return act(h) if isinstance(act, nn.ReLU) else h  # the derivative of ReLU needs its output

    with saved_tensors_hooks(lambda _: None, again):
        return act(h)


def _all_kept(x: Tensor, weights: Iterable[Tensor]) -> bool:
    """True if autograd must keep all that it keeps by default."""
    device = x.device.type
    if torch.compiler.is_compiling():
        return True
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return True
    return any(w.requires_grad for w in weights)
