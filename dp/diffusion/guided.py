"""Steps of a purifier that differentiate a network themselves: the backward pass recomputes whole steps.

`ActivationCheckpointing` recomputes single network calls. What a step stores besides, such as the activations of its
guide, then grows with the number of steps. Here the unit is the step, so the memory is that of one step.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from dp.compiled import plain_calls
from dp.diffusion.checkpointing import ActivationCheckpointing

Step = Callable[..., Tensor | tuple[Tensor, ...]]


class Network(Protocol):
    """What `guided_step` reads of a denoiser, or of a purifier with networks of its own."""

    memory: str
    nfe: int
    recompute: ActivationCheckpointing


def guided_step(network: Network, step: Step, *inputs: Tensor) -> Any:
    """step(*inputs), one step of a purifier that takes gradients of the denoiser, with activation checkpointing.

    `network`: the denoiser, or the `PurifierModule` whose networks the step calls. Only its `memory=recompute` changes
    what is stored: of the newest steps the graph, as far as `recompute.keep` network calls allow and at least of one
    step, and of the others their inputs. Values and gradients have the same bits in both modes, and `nfe` counts a call
    once.
    `step`: a function of tensors that returns a tensor or a tuple of tensors. It draws no noise, because noise would be
    drawn anew in the backward pass. It takes its inner gradients by `inner_gradient`. Values of a loop, such as sigma,
    are bound with `functools.partial`: when the step is recomputed, the loop has ended.
    `inputs`: all tensors that the step needs a gradient for: the state z, the image x, the moments of Adam, the noise
    drawn before. A tensor that the step takes from its surroundings is a constant. The purifier calls its `on_step`
    outside the step, with what the step returns.
    Raises ValueError if the gradient of the step itself is to be differentiated while memory is `recompute`.
    """
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)):
        return step(*inputs)
    if network.memory == "store":
        return step(*_Entry.apply(*inputs))
    network.recompute.free(network.recompute.keep - 1)  # before this step needs the memory
    unit = _Unit(network, step)
    outs = _Checkpointed.apply(unit, *inputs)
    for _ in range(max(1, unit.calls)):  # a step counts as the network calls that it makes
        network.recompute.newest.append(weakref.ref(unit))
    network.recompute.free(max(network.recompute.keep, unit.calls, 1))
    return outs if unit.several else outs[0]


def inner_gradient(
    objective: Callable[..., Sequence[Tensor]], *inputs: Tensor
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The gradients, in each of `inputs`, of the sum of a purifier's own objective; and what else it returns.

    `objective(*inputs)` returns its values, one for each image, so that no image's gradient depends on another image,
    and any further tensors. Where the inputs have a graph, the gradients have one, too, so that they can be
    differentiated. Without autograd it works as well: the values have the same bits, and no graph.
    """
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    with torch.enable_grad(), plain_calls():
        leaves = [z if keep and z.requires_grad else z.detach().requires_grad_() for z in inputs]
        values, *rest = objective(*leaves)
        # Always with a graph: without one, autograd takes other kernels, which round otherwise.
        gradients = torch.autograd.grad(values.sum(), leaves, create_graph=True)
    return (gradients, rest) if keep else (tuple(g.detach() for g in gradients), [one.detach() for one in rest])


class _Entry(torch.autograd.Function):
    """The inputs of a step, unchanged. One node passes on all of their gradients at once, each summed over the step, so
    that all sums are made in the same order whether the step is recomputed or not.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(tensor.detach() for tensor in inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads


class _Graph:
    """The autograd graph of one step, from leaves of its own, with all activations."""

    def __init__(self, network: Network, step: Step, inputs: tuple[Tensor, ...], needed: tuple[bool, ...]):
        pairs = zip(inputs, needed, strict=True)
        self.leaves = [tensor.detach().requires_grad_(needs) for tensor, needs in pairs]
        with torch.enable_grad(), _storing(network):
            outs = step(*_Entry.apply(*self.leaves))
        self.several = isinstance(outs, tuple)
        self.outs: tuple[Tensor, ...] = outs if isinstance(outs, tuple) else (outs,)


class _Unit:
    """One step: its graph, as long as that is kept."""

    def __init__(self, network: Network, step: Step):
        self.network, self.step = network, step
        self.graph: _Graph | None = None
        self.several, self.calls = False, 0

    def take_graph(self, inputs: tuple[Tensor, ...], needed: tuple[bool, ...]) -> _Graph:
        """The kept graph, or a new one; it is no longer kept, since a backward pass frees it."""
        graph, self.graph = self.graph, None
        if graph is None:
            nfe = self.network.nfe
            graph = _Graph(self.network, self.step, inputs, needed)
            self.network.nfe = nfe
        return graph


class _Checkpointed(torch.autograd.Function):
    """The outputs of a step, as a tuple."""

    @staticmethod
    def forward(ctx: Any, unit: _Unit, *inputs: Tensor) -> tuple[Tensor, ...]:
        nfe = unit.network.nfe
        unit.graph = _Graph(unit.network, unit.step, inputs, ctx.needs_input_grad[1:])
        unit.several, unit.calls = unit.graph.several, unit.network.nfe - nfe
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        ctx.unit = unit
        return tuple(out.detach() for out in unit.graph.outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise ValueError(
                "need a guided step whose gradient is not differentiated again with memory=recompute, got one that is: "
                "use memory=store"
            )
        needed = ctx.needs_input_grad[1:]
        graph = ctx.unit.take_graph(ctx.saved_tensors, needed)
        pairs = [(out, g) for out, g in zip(graph.outs, grads, strict=True) if g is not None and out.requires_grad]
        if not pairs:
            return None, *(None for _ in needed)
        outs, cotangents = zip(*pairs, strict=True)
        wanted = [leaf for leaf in graph.leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(outs, wanted, cotangents, allow_unused=True))
        return None, *(next(found) if needs else None for needs in needed)


@contextmanager
def _storing(network: Network) -> Iterator[None]:
    """Within it, the network keeps all activations: the step around it is what is recomputed."""
    before = network.memory
    network.memory = "store"
    try:
        yield
    finally:
        network.memory = before
