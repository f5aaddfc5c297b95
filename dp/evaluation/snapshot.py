"""The attack on a unit between two iterations: what it needs to go on, as tensors and plain data.

The noise of an iteration is named by its image and number (see `dp.rng`), so there is no generator to save.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dp.attacks.state import named, rebuilt
from dp.evaluation.loss_curve import Point


@dataclass
class Outcome:
    """State and outcome of one image under attack."""

    x_adv: Tensor | None = None  # (C,H,W) in the threat model: the worst point in-loop, or the attack's choice
    distance: float = 0.0  # of x_adv, in the threat model's norm
    steps: int = 0  # iterations done
    evaluations: int = 0  # in-loop evaluations
    broken_at: int | None = None  # iterations done when the in-loop rule first called it broken
    classes: list[int] = field(default_factory=list)  # classes of the in-loop samples at x_adv
    worst: tuple[int, float] = (-1, 0.0)  # number of wrong in-loop samples and mean margin at x_adv
    state: Any = None  # the attack's state of this image, between batches
    curve: tuple[Point, ...] = ()  # a point for each iteration done


class Snapshot(NamedTuple):
    """The attack on the images 0 ... n-1 of a unit between two iterations. An image of the current phase is in one of
    the three lists, unless its attack has stopped.
    """

    phase: int  # number of the current phase: the attack's `phase_ends` that are passed
    waiting: tuple[int, ...]  # images that have no batch slot yet
    active: tuple[int, ...]  # images in a batch slot
    done: tuple[int, ...]  # images that are through with this phase
    outcomes: tuple[Outcome, ...]  # of all images; never changed afterwards
    seconds: float = 0.0  # spent on the unit so far

    @staticmethod
    def first(images: int) -> "Snapshot":
        """The attack on so many images before its first iteration."""
        return Snapshot(0, tuple(range(images)), (), (), tuple(Outcome() for _ in range(images)))


OnSnapshot = Callable[[Snapshot], None]


class Packed(NamedTuple):
    """A snapshot as a file holds it."""

    tensors: dict[str, Tensor]  # contiguous, on the CPU, none shares memory
    fields: dict[str, Any]  # plain data, for JSON


def packed(snapshot: Snapshot) -> Packed:
    """A snapshot as tensors and plain data."""
    tensors: dict[str, Tensor] = {}
    for k, outcome in enumerate(snapshot.outcomes):
        if outcome.x_adv is not None:
            tensors[f"{k}.x_adv"] = outcome.x_adv
        if outcome.state is not None:
            tensors |= {f"{k}.state.{path}": tensor for path, tensor in named(outcome.state).items()}
        if outcome.curve:
            tensors[f"{k}.curve"] = torch.tensor(outcome.curve, dtype=torch.float64)
    fields = snapshot._asdict() | {
        "outcomes": [
            [o.distance, o.steps, o.evaluations, o.broken_at, o.classes, list(o.worst)] for o in snapshot.outcomes
        ],
        # Some counters stay on the CPU, and a sum's last bits may depend on the order of the pixels in memory.
        "layout": {name: [t.device.type != "cpu", *t.stride()] for name, t in tensors.items()},
    }
    copies = {name: torch.empty(t.shape, dtype=t.dtype).copy_(t.detach()) for name, t in tensors.items()}
    return Packed(copies, fields)


def unpacked(saved: Packed, template: Any, device: torch.device) -> Snapshot:
    """The snapshot that was packed. `template`: a state of the same attack for one image; `device`: of the images.

    Raises ValueError if the saved states do not have the structure of the template.
    """
    tensors = {}
    for name, values in saved.tensors.items():
        on_device, *strides = saved.fields["layout"][name]
        tensors[name] = _laid_out(values.to(device if on_device else "cpu"), strides)
    outcomes = []
    for k, (distance, steps, evaluations, broken_at, classes, worst) in enumerate(saved.fields["outcomes"]):
        prefix = f"{k}.state."
        state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        given = (distance, steps, evaluations, broken_at, classes, tuple(worst))
        curve = tuple(Point(*point) for point in tensors[f"{k}.curve"].tolist()) if f"{k}.curve" in tensors else ()
        x_adv = tensors.get(f"{k}.x_adv")
        outcomes.append(Outcome(x_adv, *given, _state(template, state) if state else None, curve))
    waiting, active, done = (tuple(saved.fields[name]) for name in ("waiting", "active", "done"))
    return Snapshot(saved.fields["phase"], waiting, active, done, tuple(outcomes), saved.fields["seconds"])


def _state(template: Any, tensors: dict[str, Tensor]) -> Any:
    shapes, wanted = ({name: (t.shape, t.dtype) for name, t in given.items()} for given in (tensors, named(template)))
    if shapes != wanted:
        differ = sorted(name for name in shapes | wanted if shapes.get(name) != wanted.get(name))
        raise ValueError(f"need the attack's own state, got another one in {', '.join(differ[:3])}")
    return rebuilt(template, tensors)


def _laid_out(values: Tensor, strides: list[int]) -> Tensor:
    """The values in memory with these strides."""
    if not values.numel() or list(values.stride()) == strides:
        return values
    size = 1 + sum((n - 1) * stride for n, stride in zip(values.shape, strides, strict=True))
    memory, place = values.new_zeros(size), torch.arange(size, device=values.device).as_strided(values.shape, strides)
    memory[place.flatten()] = values.flatten()
    return memory.as_strided(values.shape, strides)
