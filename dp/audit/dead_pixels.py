"""A check that no layer stops the gradient at most pixels; it names the layer."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

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
# Operations that choose entries. A random choice is another one in every sample: what counts is stopped in all of them.
CHOICES = ("where", "dropout", "feature_dropout", "alpha_dropout", "masked_scatter")
SAMPLES = 16  # samples at most of a defense with noise: a mask that keeps 5 % of pixels spares 56 % of them in 16
# A transform such as a DCT has other values than the image, so that a threshold among them is no saturation of pixels.
# An operation works on images if what it is given has at least this correlation with the image, pixel by pixel. On
# digits purified images have .79 and more, coefficients of a DCT at most .11.
ALIKE = 0.3
ENDS = ("the classifier", "the purification")  # the whole way back to the purified image, and to the image
TORCH = str(Path(torch.__file__).parent)


class _Stopped(NamedTuple):
    """The entries that one operation stops, in one sample or in all of them."""

    stopped: Tensor  # bool
    counted: Tensor  # bool, of the same shape
    image: bool  # True if the operation works on images
    choice: bool = False  # True if it may be a random choice, and for the whole way back

    @property
    def share(self) -> float:
        """The share of the entries that count."""
        return float((self.stopped & self.counted).sum() / self.counted.sum().clamp(min=1))

    def again(self, other: "_Stopped") -> "_Stopped":
        """The entries that are stopped in another sample, too. An entry counts if it counts in one of them."""
        if self.stopped.shape != other.stopped.shape:
            return min(self, other, key=lambda found: found.share)
        stopped = (self.stopped | ~self.counted) & (other.stopped | ~other.counted)
        return _Stopped(stopped, self.counted | other.counted, self.image, self.choice)


class _Watch(TorchFunctionMode):
    """Measures, for every elementwise operation on a tensor with a gradient, the entries that it stops.

    `x`: the images (B,C,H,W). `stopped`: by the name of the operation, the call that stops the largest share.
    """

    def __init__(self, x: Tensor):
        super().__init__()
        self.x, self.interior = x, ((x > INTERIOR[0]) & (x < INTERIOR[1])).any(dim=1, keepdim=True)
        self.stopped: dict[str, _Stopped] = {}

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.grad_fn is not None and out.is_floating_point():
            inputs = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor) and a.requires_grad]
            moved = bool(inputs) and (inputs[0] is not out or func.__name__.endswith("_"))
            same = len(inputs) == 1 and inputs[0].shape == out.shape and inputs[0].is_floating_point()
            if same and moved and not _one_number(out):
                self._hook(func, out, inputs[0])
        return out

    def _hook(self, func: Callable, out: Tensor, given: Tensor) -> None:
        name = func.__name__
        image = name not in MIXES and self._image(out) and self._alike(given)
        if image or name in CLAMPS:
            assert out.grad_fn is not None
            place = f"{name} ({_place(sys._getframe(2))})"
            self._measure(out.grad_fn, place, out.shape, image, name in CHOICES)

    def _alike(self, given: Tensor) -> bool:
        """True if the tensor (N B,C,h,w) has the images' values, up to a scale and a shift."""
        copies = len(given) // len(self.x)
        pair = [given.detach(), F.interpolate(self.x.detach().to(given), size=given.shape[2:]).repeat(copies, 1, 1, 1)]
        one, other = (v.double().flatten(1) - v.double().flatten(1).mean(dim=1, keepdim=True) for v in pair)
        size = float(one.norm() * other.norm())
        return size == 0 or abs(float((one * other).sum())) >= ALIKE * size

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
                self._measure(node, type(node).__name__.removesuffix("Backward"))

    def _measure(
        self, node: Node, name: str, shape: torch.Size | None = None, image: bool = True, choice: bool = False
    ) -> None:
        """Measure an operation in the backward pass. `shape`: its output's, or None if it is not known, and then only
        operations with the shape of images count. `image`, `choice`: see `_Stopped`.
        """

        def see(inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> None:
            given = outputs[0]
            if given is None or (shape is None and not self._image(given)) or (shape and given.shape != shape):
                return
            if _one_number(given):
                return
            taken = next((g for g in inputs if g is not None and g.shape == given.shape), None)
            if taken is None:  # a matrix product, whose node works on a view of another shape
                return
            counted = given != 0
            if image:
                counted &= self.mask(given)
            if bool(counted.any()):
                found = _Stopped(counted & (taken.abs() < STOPPED * given.abs()), counted, image, choice)
                self.stopped[name] = max(self.stopped.get(name, found), found, key=lambda one: one.share)

        node.register_hook(see)

    def _image(self, out: Tensor) -> bool:
        return out.dim() == 4 and out.shape[1] == self.x.shape[1] and len(out) % len(self.x) == 0

    def mask(self, out: Tensor) -> Tensor:
        """The pixels that count, in the shape of `out` (N B,C,h,w)."""
        copies = len(out) // len(self.interior)
        return F.interpolate(self.interior.float(), size=out.shape[2:]).bool().repeat(copies, 1, 1, 1).expand(out.shape)


def _one_number(out: Tensor) -> bool:
    """True for one number or one for each image, such as a step size within bounds: the pixels have another way."""
    return out.dim() < 2 or out[:1].numel() <= 1


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
    images, worst = subject.images, dict[str, _Stopped]()
    x = subject.evaluation.threat.noise(images.x, streams(subject, images, Stage.GRADIENT).draw(0))
    for model in differentiated_by_attack(subject).values():
        worst |= _over_samples(subject, model, x)
    lines = [
        f"{name} stops the gradient at {percent(found.share)} of pixels" for name, found in worst.items() if _bad(found)
    ]
    top = max(worst.items(), key=lambda item: item[1].share, default=None)
    most = "no elementwise operation" if top is None else f"at most {percent(top[1].share)} at {top[0]}"
    value = "; ".join(lines) or most
    goal = f"at most {percent(PIXELS)}; inside networks {percent(HIDDEN)}"
    return Finding("dead pixels", value, goal, "FAIL" if lines else "PASS", f"{len(images.ids)} images", 0.0)


def _bad(found: _Stopped) -> bool:
    return found.share > (PIXELS if found.image else HIDDEN)


def _over_samples(subject: Subject, model: Defended, x: Tensor) -> dict[str, _Stopped]:
    """What each operation stops in one sample; what a choice, and what the whole way, stop in every sample.

    Samples are taken until no choice stops too much, at most `SAMPLES`, and one of a defense without noise.
    """
    found, noise = _stopped(subject, model, x, 1)
    chosen = [name for name, one in found.items() if one.choice]
    for k in range(2, SAMPLES + 1):
        if not noise or not any(_bad(found[name]) for name in chosen):
            break
        again, _ = _stopped(subject, model, x, k)
        found |= {name: found[name].again(again[name]) for name in chosen if name in again}
    return found


def _stopped(subject: Subject, model: Defended, x: Tensor, sample: int) -> tuple[dict[str, _Stopped], bool]:
    """The entries that each operation stops in one sample, and whether the defense used its noise."""
    model, reached = copy.copy(model), list[Tensor]()
    model.on_purified = None
    leaf = x.detach().requires_grad_()
    rng = streams(subject, subject.images, Stage.GRADIENT).draw(sample)
    hook = model.classifier.register_forward_pre_hook(lambda module, args: reached.append(args[0]))
    try:
        with _Watch(x) as watch:
            value = margin(model(leaf, rng), subject.images.y).sum()
    finally:
        hook.remove()
    ends = dict(zip(ENDS, (reached[-1], leaf), strict=True))
    ends = {name: at for name, at in ends.items() if at.requires_grad}
    if value.requires_grad and ends:
        watch.own_functions(value)
        taken = torch.autograd.grad(value, list(ends.values()), allow_unused=True)
        for (name, at), grad in zip(ends.items(), taken, strict=True):
            if at.dim() != 4:
                continue
            counted = watch.mask(at)
            zero = torch.ones_like(counted) if grad is None else grad == 0
            if bool(counted.any()):
                watch.stopped[name] = _Stopped(zero & counted, counted, image=True, choice=True)
    return watch.stopped, rng.used


CHECKS = (dead_pixels,)
QUICK = CHECKS
