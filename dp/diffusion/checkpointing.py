"""Activation checkpointing (Chen et al. 2016) of network calls: the backward pass recomputes what was not kept.

The newest calls keep their activations, because the backward pass begins with them. A chain of any length then needs
the memory of those calls alone. First and second derivatives are those of the plain calls, to the last bit.
"""

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]


class ActivationCheckpointing:
    """Calls networks so that autograd stores the activations of the newest `keep` calls only.

    The network must be deterministic, because noise drawn inside it would be drawn anew in the backward pass. Its
    argument must be its only input that needs a gradient. A gradient may be taken with `create_graph=True` and be
    differentiated once more; a third derivative raises ValueError.
    """

    def __init__(self, keep: int = 3):
        """`keep`: how many of the newest calls keep their activations, at least 1."""
        if keep < 1:
            raise ValueError(f"need keep >= 1, got keep={keep}")
        self.keep = keep
        self.newest: deque[weakref.ref[Any]] = deque()  # weak: a call is freed together with its chain

    def __call__(self, f: Network, x: Tensor) -> Tensor:
        """f(x): x (B,C,H,W) at the network's input scale."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return f(x)
        self.free(self.keep - 1)  # before this call needs the memory
        call = _Call(f)
        self.newest.append(weakref.ref(call))
        out, _ = _Output.apply(x, call)
        return out

    def free(self, room: int) -> None:
        """Frees the graphs of the oldest calls, until those of at most `room` calls are kept."""
        while len(self.newest) > room:
            oldest = self.newest.popleft()()
            if oldest is not None:
                oldest.graph = None


class _Graph:
    """The autograd graph of one network call, from a leaf of its own, with all activations."""

    def __init__(self, f: Network, x: Tensor):
        with torch.enable_grad():
            self.leaf = x.detach().requires_grad_()
            self.out = f(self.leaf)

    def vjp(self, cotangent: Tensor) -> Tensor:
        """cotangent^T d out / d leaf, itself differentiable in the leaf and in the cotangent."""
        with torch.enable_grad():
            return torch.autograd.grad(self.out, self.leaf, cotangent, create_graph=True)[0]


class _Second:
    """What one backward pass has asked of one call by way of its first derivatives.

    Their part of the gradient waits here for the part that comes by way of the call's output, because the plain graph
    adds both at every activation, and a sum of two separate gradients would differ in the last bit.
    """

    def __init__(self, task: int, graph: _Graph):
        self.task = task
        self.graph = graph
        self.waiting: list[tuple[int, Tensor, Tensor, Tensor]] = []  # order, cotangent, vjp, gradient of the vjp

    def gradient(self, grad: Tensor | None) -> Tensor | None:
        """The gradient in the call's input, given that of its output (None where nothing came by that way)."""
        if len(self.waiting) > 1:  # recorded once more in the order of the forward pass: sums are made in that order
            ordered = sorted(self.waiting, key=lambda entry: entry[0])
            self.waiting = [(order, c, self.graph.vjp(c), g) for order, c, _, g in ordered]
        pairs = [(vjp, g) for _, _, vjp, g in self.waiting if vjp.requires_grad]  # not where the network is linear
        if grad is not None:
            pairs.append((self.graph.out, grad))
        if not pairs:
            return None
        outs, grads = zip(*pairs, strict=True)
        return torch.autograd.grad(outs, self.graph.leaf, grads, allow_unused=True)[0]


class _Call:
    """One network call: its graph, as long as that is kept, and the state of the backward pass that visits it."""

    def __init__(self, f: Network):
        self.f = f
        self.graph: _Graph | None = None
        self.second: _Second | None = None
        self.derivatives = 0  # how many first derivatives were taken with `create_graph=True`

    def take_graph(self, x: Tensor) -> _Graph:
        """The kept graph, or a new one; it is no longer kept, since a backward pass frees it."""
        graph, self.graph = self.graph or _Graph(self.f, x), None
        return graph

    def second_of_this_pass(self, x: Tensor) -> _Second:
        """The state of the current backward pass; what an earlier pass left behind is dropped."""
        task = torch._C._current_graph_task_id()
        if self.second is None or self.second.task != task:
            self.second = _Second(task, self.take_graph(x))
        return self.second

    def take_second(self) -> _Second | None:
        """The state of the current backward pass, if it has visited a first derivative of this call."""
        second, self.second = self.second, None
        return second if second is not None and second.task == torch._C._current_graph_task_id() else None


class _Output(torch.autograd.Function):
    """f(x), and an empty tensor that lets first derivatives depend on this node and so precede it in a backward
    pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
        call.graph = _Graph(call.f, x)
        out, token = call.graph.out.detach(), x.new_empty(0)
        ctx.save_for_backward(x, token)
        ctx.set_materialize_grads(False)
        ctx.call = call
        return out, token

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x, token), call, grad = ctx.saved_tensors, ctx.call, grads[0]
        if torch.is_grad_enabled():  # create_graph=True: this gradient will be differentiated
            return (None if grad is None else _FirstDerivative.apply(token, grad, x.detach(), call)), None
        second = call.take_second()
        if second is not None:
            return second.gradient(grad), None
        if grad is None:
            return None, None
        graph = call.take_graph(x)
        return torch.autograd.grad(graph.out, graph.leaf, grad)[0], None


class _FirstDerivative(torch.autograd.Function):
    """The vector-Jacobian product of one call as a checkpointed function of the call's input and of the cotangent."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, cotangent: Tensor, x: Tensor, call: _Call) -> Tensor:
        ctx.save_for_backward(cotangent, x)
        ctx.call, ctx.order = call, call.derivatives
        call.derivatives += 1
        graph = call.graph or _Graph(call.f, x)  # a new one is not kept: only the newest calls are
        return graph.vjp(cotangent.detach()).detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise ValueError("need at most second derivatives with memory=recompute, got a third: use memory=store")
        cotangent, x = ctx.saved_tensors
        second = ctx.call.second_of_this_pass(x)
        cotangent = cotangent.detach().requires_grad_(ctx.needs_input_grad[1])
        vjp, grad = second.graph.vjp(cotangent), None
        if ctx.needs_input_grad[1]:
            (grad,) = torch.autograd.grad(vjp, cotangent, grads[0], retain_graph=True)
        second.waiting.append((ctx.order, cotangent, vjp, grads[0]))
        return None, grad, None, None
