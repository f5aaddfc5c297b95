# pyright: strict
"""The contract of an attack: a frozen dataclass of hyperparameters, with `start` and `step` over a per-image state."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Self

from torch import Tensor

from dp.defense.interface import Defense
from dp.rng import Streams
from dp.threat_models.ball import BALLS, OPTIONS, ThreatModel

FULL = "full"  # gradient mode: the defense's own gradient
VALUES = "values"  # in place of a gradient mode: the attack asks for values of the loss alone
BUDGET = ("iterations", "eot", "restarts")  # hyperparameters that only cost time: more of them is more work


class Start(IntEnum):
    """Sub-streams of the noise that `Attack.start` is given. The numbers are part of every result."""

    POINT = 0  # the first point, or the first value of its loss
    SURVEY = 1  # logits that the attack needs beforehand
    TARGET = 2  # the class that a targeted attack aims at


class Stream(IntEnum):
    """Sub-streams of the noise that `Attack.step` is given. The numbers are part of every result."""

    QUERY = 0  # the samples of the gradient, or of the values that are compared
    SELECTION = 1  # the fresh samples that choose among points
    RESTART = 2  # the point at which the next run begins
    CLASSIFIER = 3  # the bare classifier on purified images


class Part(NamedTuple):
    """An attack that is not made of others, as it stands in the one that was asked for its parts."""

    name: str  # its key in a union; "" where it stands alone
    attack: "Attack"
    modes: tuple[str, ...]  # gradient modes on the way to it, outermost first, without `full`; not its own `gradient`


@dataclass(frozen=True)
class Attack(ABC):
    """`steps` calls of `step` after one of `start`, each with streams of its own. The state is a NamedTuple of tensors,
    dim 0 = image (or of further such tuples), whose field `x_adv` (B,C,H,W) is always feasible.

    A subclass is a frozen dataclass of hyperparameters. It says how many `steps` and `samples` it takes; every other
    member has a default. A field that has the name of a member needs a default value. Under a threat model that asks
    for a certificate the state has a field `proof` (see `ThreatModel.admit`).
    """

    @property
    @abstractmethod
    def steps(self) -> int:
        """Calls of `step`; 0 for no attack."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """Samples of the defense per gradient, or per value that is compared."""

    @property
    def select(self) -> str:
        """`best`: the attack compares its points by their loss; `last`: it returns the last one."""
        return "best"

    @property
    def keeps_best(self) -> bool:
        """True if what it returns is the best of several `candidates`, by its own values or selection samples."""
        return self.select == "best"

    @property
    def selection_samples(self) -> int:
        """Fresh samples of its own that choose the point it returns; 0 if none do."""
        return 0

    @property
    def candidates(self) -> int:
        """Points that it evaluates: the random-noise baseline gets as many."""
        return self.steps

    @property
    def norms(self) -> tuple[str, ...]:
        """Norms of the threat models under which it can run."""
        return BALLS

    @property
    def gradient(self) -> str:
        """The gradient mode that it asks for itself (see `Defense.gradient_mode`), or `values` if it asks for none."""
        return FULL

    @property
    def phase_ends(self) -> tuple[int, ...]:
        """Rising counts of steps at which an image should wait for others, because its next step asks the defense for
        something else. The last is `steps`.
        """
        return (self.steps,)

    @property
    def batch_bound(self) -> bool:
        """True if an image's result depends on the other images in its batch."""
        return False

    @property
    def criterion(self) -> str:
        """What it goes by, in words that its number of samples follows."""
        return "the mean over"

    @property
    def least_classes(self) -> int:
        """Classes that its loss needs."""
        return 2

    def check_classes(self, classes: int) -> None:
        """Raises ValueError if its loss is not defined for so many classes."""
        if classes < self.least_classes:
            raise ValueError(
                f"need {self.least_classes} classes for this attack's loss, got {classes}: take another attack"
            )

    @property
    def is_baseline(self) -> bool:
        """True for projected gradient steps on the mean loss, the attack that ensembles are compared with."""
        return False

    @property
    def is_ensemble(self) -> bool:
        """True if it returns the strongest point of several attacks, its `members`."""
        return False

    def members(self, classes: int) -> Mapping[str, "Attack"]:
        """The attacks of an ensemble by name, for a classifier of so many classes; empty for a single attack."""
        return {}

    def parts(self) -> tuple[Part, ...]:
        """The attacks that it is made of; a single attack is its own only part."""
        return (Part("", self, ()),)

    def reach(self, threat: ThreatModel) -> float | None:
        """The length that the steps of one run can cover together, in the threat model's norm and units; None if the
        steps adapt to the threat model.
        """
        return None

    def width(self, threat: ThreatModel) -> float:
        """The length that `reach` must have, so that every place of the ball can be reached from the start."""
        return threat.eps

    def budget(self) -> dict[str, int]:
        """Those of `BUDGET` that it has; of several attacks the largest values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name in BUDGET}

    def with_budget(self, **changes: Callable[[int], int]) -> Self:
        """The same attack, all its parts included, with every named entry of `budget` that it has put through the
        function given for it: `attack.with_budget(iterations=lambda n: 4 * n)`.
        """
        budget = self.budget()
        return dataclasses.replace(self, **{key: to(budget[key]) for key, to in changes.items() if key in budget})

    def countable(self) -> "Attack":
        """An attack that asks a defense for at least as much as this one asks for one image, and whose code runs on one
        image with a defense that is never wrong: the work is counted by it.
        """
        return self

    def current(self, state: Any) -> Any:
        """The state whose `x_adv` is the current iterate, rather than the point that would be returned: what is
        evaluated while the attack runs.
        """
        return state

    @abstractmethod
    def says(self, through: str) -> str:
        """One line for people: what it asks of the defense, how often, and `through` what it differentiates."""

    @abstractmethod
    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        """The first state, for images x (B,C,H,W) in [0,1] and labels y (B,)."""

    @abstractmethod
    def step(self, model: Defense, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        """The state after one more iteration."""


def check_members(attack: object, named: str) -> None:
    """Raises ValueError if an object, called `named`, lacks a member of `Attack`."""
    lacks = [name for name in vars(Attack) if not name.startswith("_") and name not in dir(attack)]
    if lacks:
        listed = ", ".join(sorted(lacks))
        raise ValueError(f"need attack={named} to be an Attack of dp.attacks.base, got one without {listed}")


def check_norm(attack: Attack, named: str, norm: str) -> None:
    """Raises ValueError if the attack, called `named`, cannot run under a threat model of `norm`."""
    if not attack.norms:
        raise ValueError(f"need parts of attack={named} that share a threat model, got none that all of them take")
    if norm not in attack.norms:
        need = " or ".join(OPTIONS[n] for n in attack.norms)
        raise ValueError(f"need threat_model={need} for attack={named}, got threat_model={OPTIONS[norm]}")
