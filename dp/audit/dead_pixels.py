"""A check that no layer stops the gradient at most pixels; it names the layer."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from dp.audit.check import Finding, Subject, audited, streams
from dp.audit.reruns import percent
from dp.audit.returned_images import differentiated_by_attack
from dp.audit.stages import Stage
from dp.defense.defended import Defended
from dp.objectives import margin

# Shares of the gradient's entries that one operation stops: above it the check fails. Pixels count if they are not near
# black or white, because a clamp to [0,1] rightly stops those that a purification pushes beyond. Of the digits' sound
# defenses the last clamp stops at most 12 % of such pixels.
PIXELS = 0.5
HIDDEN = 0.9  # for clamps inside a network, where half of the entries of a ReLU6 are rightly stopped
INTERIOR = (0.1, 0.9)  # the pixels that count
STOPPED = 1e-6  # an entry is stopped if its operation multiplies the gradient by less than this
CLAMPS = ("clamp", "clip", "clamp_", "clamp_min", "clamp_max", "hardtanh", "relu6", "hardsigmoid", "hardswish")
MIXES = ("mul", "__mul__", "__rmul__", "mul_", "masked_fill", "getitem", "__getitem__", "expand", "repeat", "cat")
TORCH = str(Path(torch.__file__).parent)


class _Watch(TorchFunctionMode):
    """Measures, for every elementwise operation on a tensor with a gradient, the share of entries that it stops.

    `interior`: the pixels that count, (B,1,H,W). `stopped`: the largest share by the name of the operation.
    """

    def __init__(self, interior: Tensor, channels: int):
        super().__init__()
        self.interior, self.channels = interior, channels
        self.stopped: dict[str, tuple[float, bool]] = {}

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.grad_fn is not None and out.is_floating_point():
            inputs = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor) and a.requires_grad]
            moved = bool(inputs) and (inputs[0] is not out or func.__name__.endswith("_"))
            if len(inputs) == 1 and inputs[0].shape == out.shape and moved:
                self._hook(func, out)
        return out

    def _hook(self, func: Callable, out: Tensor) -> None:
        name, image = func.__name__, self._image(out)
        if name not in MIXES and (image or name in CLAMPS):
            assert out.grad_fn is not None
            self._measure(out.grad_fn, f"{name} ({_place(sys._getframe(2))})", out.shape)

    def own_functions(self, value: Tensor) -> None:
        """Measure the functions that define their own derivative, which torch does not report as calls."""
        todo, seen = [value.grad_fn], set[Node | None]()
        while todo:
            node = todo.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
            if isinstance(node, BackwardCFunction):
                self._measure(node, type(node).__name__.removesuffix("Backward"), None)

    def _measure(self, node: Node, name: str, shape: torch.Size | None) -> None:
        """Measure an operation in the backward pass. `shape`: its output's, or None if it is not known."""

        def see(inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> None:
            given = outputs[0]
            if given is None or (shape is None and not self._image(given)) or (shape and given.shape != shape):
                return
            taken = next((g for g in inputs if g is not None and g.shape == given.shape), None)
            if shape is None and taken is None:
                return
            image, counted = self._image(given), given != 0
            if image:
                counted &= self.mask(given)
            if bool(counted.any()):
                stopped = counted if taken is None else counted & (taken.abs() < STOPPED * given.abs())
                share = float(stopped.sum() / counted.sum())
                self.stopped[name] = max(self.stopped.get(name, (0.0, image)), (share, image))

        node.register_hook(see)

    def _image(self, out: Tensor) -> bool:
        return out.dim() == 4 and out.shape[1] == self.channels

    def mask(self, out: Tensor) -> Tensor:
        """The pixels that count, in the shape of `out` (N B,C,h,w)."""
        copies = len(out) // len(self.interior)
        return F.interpolate(self.interior.float(), size=out.shape[2:]).bool().repeat(copies, 1, 1, 1).expand(out.shape)


def _place(frame: FrameType | None) -> str:
    """The file and line outside torch that called the operation."""
    while frame is not None and frame.f_code.co_filename.startswith(TORCH):
        frame = frame.f_back
    return "?" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


@audited("dead pixels", "layers that stop the gradient at most pixels, such as a saturating clamp")
def dead_pixels(subject: Subject) -> Finding:
    """Follow the gradient of the attacked defense through every elementwise operation on images, and name the worst.

    An operation that saturates has a zero derivative there: the gradient is exact, and tells the attack nothing. The
    point is a random point of the threat model. Clamps inside networks count with another bound.
    """
    images, worst = subject.images, {}
    x = subject.evaluation.threat.noise(images.x, streams(subject, images, Stage.GRADIENT).draw(0))
    for model in differentiated_by_attack(subject).values():
        worst |= _stopped(subject, model, x)
    found = {name: share for name, (share, image) in worst.items() if share > (PIXELS if image else HIDDEN)}
    lines = [f"{name} stops the gradient at {percent(share)} of pixels" for name, share in found.items()]
    top = max(worst.items(), key=lambda item: item[1][0], default=None)
    most = "no elementwise operation" if top is None else f"at most {percent(top[1][0])} at {top[0]}"
    value = "; ".join(lines) or most
    goal = f"at most {percent(PIXELS)}; inside networks {percent(HIDDEN)}"
    return Finding("dead pixels", value, goal, "FAIL" if lines else "PASS", f"{len(images.ids)} images", 0.0)


def _stopped(subject: Subject, model: Defended, x: Tensor) -> dict[str, tuple[float, bool]]:
    """The share of entries that each operation stops, and whether it works on images."""
    model, reached = copy.copy(model), list[Tensor]()
    model.on_purified = None
    leaf = x.detach().requires_grad_()
    interior = ((x > INTERIOR[0]) & (x < INTERIOR[1])).any(dim=1, keepdim=True)
    hook = model.classifier.register_forward_pre_hook(lambda module, args: reached.append(args[0]))
    try:
        with _Watch(interior, x.shape[1]) as watch:
            out = model(leaf, streams(subject, subject.images, Stage.GRADIENT).draw(1))
            value = margin(out, subject.images.y).sum()
    finally:
        hook.remove()
    ends = {"the classifier": reached[-1], "the purification": leaf}
    ends = {name: at for name, at in ends.items() if at.requires_grad}
    if value.requires_grad and ends:
        watch.own_functions(value)
        taken = torch.autograd.grad(value, list(ends.values()), allow_unused=True)
        for (name, at), grad in zip(ends.items(), taken, strict=True):
            counted = watch.mask(at)
            zero = torch.ones_like(counted) if grad is None else grad == 0
            if at.dim() == 4 and bool(counted.any()) and name not in watch.stopped:
                watch.stopped[name] = float((zero & counted).sum() / counted.sum()), True
    return watch.stopped


CHECKS = (dead_pixels,)
QUICK = CHECKS
