"""A property of a contract that does not hold, in one sentence: by how much, and what the likely cause is."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

RAISED = (ValueError, TypeError, AttributeError, RuntimeError, LookupError, ArithmeticError, AssertionError)


class Failure(NamedTuple):
    """`name`: the property, as a yaml may declare it; `what`: what was found, and by how much; `advice`: the likely
    cause and what to do.
    """

    name: str
    what: str
    advice: str

    @property
    def sentence(self) -> str:
        """The failure in one line."""
        return " ".join(f"{self.name}: {self.what}: {self.advice}".split())


class Raised(Exception):
    """A method that raised an error where it was called."""

    def __init__(self, failure: Failure):
        super().__init__(failure.sentence)
        self.failure = failure


def called(what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function's result. Raises `Raised` if the function raises; `what`: its name in the sentence."""
    try:
        return function(*args, **kwargs)
    except RAISED as error:
        text = " ".join(str(error).split())[:200]
        found = f"{what} raised {type(error).__name__} ({text})"
        raise Raised(Failure("call", found, "compare its signature and its shapes with docs/extending.md")) from error


def undeclared(failures: Iterable[Failure], exceptions: Mapping[str, str]) -> list[Failure]:
    """The failures whose property is no declared exception."""
    return [failure for failure in failures if failure.name not in exceptions]


def difference(a: Tensor, b: Tensor) -> str:
    """By how much two batches (B,...) differ, in words; the image that differs most is named."""
    unequal = (a != b) & ~(a.isnan() & b.isnan())
    sizes = (a.double() - b.double()).abs().nan_to_num(nan=torch.inf).view(len(a), -1).amax(1)
    share = 100 * unequal.double().mean().item()
    return f"image {int(sizes.argmax())} by up to {sizes.max().item():.2g}, {share:.3g} % of all values"
