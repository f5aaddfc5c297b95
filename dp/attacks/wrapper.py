"""An attack that hands everything on to another one: what changes one thing about an attack inherits from it."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from dp.attacks.base import Attack, Part
from dp.defense.interface import Defense
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel


@dataclass(frozen=True)
class Wrapped(Attack):
    """`attack`, and nothing changed. Raises ValueError if that is no attack."""

    attack: Attack

    def __post_init__(self):
        if not isinstance(self.attack, Attack):
            raise ValueError(f"need attack.attack as an attack, got {self.attack!r}")

    @property
    def steps(self) -> int:
        return self.attack.steps

    @property
    def samples(self) -> int:
        return self.attack.samples

    @property
    def select(self) -> str:
        return self.attack.select

    @property
    def keeps_best(self) -> bool:
        return self.attack.keeps_best

    @property
    def selection_samples(self) -> int:
        return self.attack.selection_samples

    @property
    def candidates(self) -> int:
        return self.attack.candidates

    @property
    def norms(self) -> tuple[str, ...]:
        return self.attack.norms

    @property
    def phase_ends(self) -> tuple[int, ...]:
        return self.attack.phase_ends

    @property
    def batch_bound(self) -> bool:
        return self.attack.batch_bound

    @property
    def criterion(self) -> str:
        return self.attack.criterion

    @property
    def gradient(self) -> str:
        return self.attack.gradient

    @property
    def least_classes(self) -> int:
        return self.attack.least_classes

    def check_classes(self, classes: int) -> None:
        self.attack.check_classes(classes)

    @property
    def is_baseline(self) -> bool:
        return self.attack.is_baseline

    @property
    def is_ensemble(self) -> bool:
        return self.attack.is_ensemble

    def members(self, classes: int) -> Mapping[str, Attack]:
        return self.attack.members(classes)

    def parts(self) -> tuple[Part, ...]:
        return self.attack.parts()

    def reach(self, threat: ThreatModel) -> float | None:
        return self.attack.reach(threat)

    def width(self, threat: ThreatModel) -> float:
        return self.attack.width(threat)

    def budget(self) -> dict[str, int]:
        return self.attack.budget()

    def with_budget(self, **changes: Callable[[int], int]) -> Self:
        return dataclasses.replace(self, attack=self.attack.with_budget(**changes))

    def countable(self) -> Self:
        return dataclasses.replace(self, attack=self.attack.countable())

    def current(self, state: Any) -> Any:
        return self.attack.current(state)

    def says(self, through: str) -> str:
        return self.attack.says(through)

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        return self.attack.start(model, x, y, threat, rng)

    def step(self, model: Defense, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        return self.attack.step(model, state, x, y, threat, rng)
