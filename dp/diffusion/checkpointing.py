"""Recomputation in the backward pass (Chen et al. 2016), of all calls but the newest few: a chain of any length needs
the memory of those, and its backward pass, which begins there, recomputes that many fewer.
"""

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Recompute:
    """f(x) for the networks of one chain; the numbers and gradients are those of f itself, to the last bit.

    f must be deterministic and x its only input that wants a gradient: noise drawn in f would be drawn anew.
    """

    def __init__(self, keep: int = 2):
        """`keep`: how many of the newest calls keep their activations."""
        if keep < 1:
            raise ValueError(f"need keep >= 1, got keep={keep}")
        self.keep = keep
        self.newest: deque[weakref.ref[_Graph]] = deque()  # weak: they go with the chain that they belong to

    def __call__(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return f(x)
        while len(self.newest) >= self.keep:  # before this call needs the room
            oldest = self.newest.popleft()()
            if oldest is not None:
                oldest.leaf = oldest.out = None
        graph = _Graph()
        self.newest.append(weakref.ref(graph))
        out = _Recomputed.apply(x, f, graph)
        assert isinstance(out, Tensor)
        return out


class _Graph:
    """One call with its activations, as long as they are kept."""

    leaf: Tensor | None = None
    out: Tensor | None = None

    def record(self, f: Callable[[Tensor], Tensor], x: Tensor) -> None:
        with torch.enable_grad():
            self.leaf = x.detach().requires_grad_()
            self.out = f(self.leaf)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Callable[[Tensor], Tensor], graph: _Graph) -> Tensor:
        graph.record(f, x)
        assert graph.out is not None
        ctx.save_for_backward(x)
        ctx.f, ctx.graph = f, graph
        return graph.out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        graph: _Graph = ctx.graph
        (x,) = ctx.saved_tensors
        if graph.out is None:
            graph.record(ctx.f, x)
        leaf, out = graph.leaf, graph.out
        graph.leaf = graph.out = None
        assert leaf is not None
        assert out is not None
        return *torch.autograd.grad(out, leaf, grads), None, None
