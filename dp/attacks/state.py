"""States of attacks: named or plain tuples of tensors, nested, whose dim 0 is the image."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dp.transfer import sent


def each(function: Callable[..., Tensor], *states: Any) -> Any:
    """The function of every tensor of a state, or of those in the same place of several states."""
    if isinstance(states[0], Tensor):
        return function(*states)
    parts = [each(function, *fields) for fields in zip(*states, strict=True)]
    return type(states[0])(*parts) if hasattr(states[0], "_fields") else tuple(parts)


def where(mask: Tensor, first: Any, second: Any) -> Any:
    """The state `first` for the images of the mask (B,), on any device, and `second` for the others."""

    masks = {mask.device: mask}  # moved once

    def chosen(a: Tensor, b: Tensor) -> Tensor:
        if a.device not in masks:
            masks[a.device] = sent(mask, a.device)
        return torch.where(masks[a.device].view(-1, *[1] * (a.dim() - 1)), a, b)

    return each(chosen, first, second)


def cat(states: Sequence[Any]) -> Any:
    """One state out of several, with the images of all in order."""
    return each(lambda *rows: torch.cat(rows), *states)


def slot(state: Any, k: int) -> Any:
    """The state of image k alone, (1,...); it shares the memory of the whole."""
    return each(lambda tensor: tensor[k : k + 1], state)


def named(state: Any, path: str = "") -> dict[str, Tensor]:
    """The tensors of a state by their paths: names of fields and positions, such as `run.x` and `moments.0.first`."""
    if isinstance(state, Tensor):
        return {path: state}
    fields = state._fields if hasattr(state, "_fields") else range(len(state))
    parts = [named(part, f"{path}.{field}".lstrip(".")) for field, part in zip(fields, state, strict=True)]
    return {name: tensor for part in parts for name, tensor in part.items()}


def rebuilt(template: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state of the structure of `template` whose tensors have these paths: the inverse of `named`."""
    paths = iter(named(template))
    return each(lambda _: tensors[next(paths)], template)
