"""Sees random numbers that come from torch's own generators."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DROPOUT = ("dropout_p", "dropout", "p")  # names that torch's operations give to the probability of dropout


@contextmanager
def random_calls(seeded: bool = True) -> Iterator[list[str]]:
    """Within it, the list gets the name of each torch operation that draws from a generator of torch.

    `seeded`: also from a generator that the call is given, which may be seeded anew each time.
    """
    names: list[str] = []
    with _RandomCalls(names, seeded):
        yield names


class _RandomCalls(TorchDispatchMode):
    def __init__(self, names: list[str], seeded: bool):
        super().__init__()
        self.names, self.seeded = names, seeded

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        counts = self.seeded or (kwargs or {}).get("generator") is None
        if counts and torch.Tag.nondeterministic_seeded in func.tags and _by_chance(func, args, kwargs or {}):
            self.names.append(str(func).removeprefix("aten.").split(".")[0])
        return func(*args, **(kwargs or {}))


def _by_chance(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """False for an operation whose call has no dropout, such as attention: torch marks it as random all the same."""
    named = [argument.name for argument in func._schema.arguments]
    given = {a.name: a.default_value for a in func._schema.arguments} | dict(zip(named, args, strict=False)) | kwargs
    training = given.get("train", given.get("training"))
    return training is not False and all(given.get(name) != 0 for name in DROPOUT)
