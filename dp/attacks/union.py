"""The worst case over several attacks, per image: they run one after another, and the strongest point is returned."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from dp.attacks.base import Attack, Part
from dp.attacks.selection import strongest
from dp.attacks.state import where
from dp.defense.interface import Defense
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel


class Sub(IntEnum):
    """Sub-streams of a step's noise."""

    ATTACK = 0  # the attack at work
    SELECTION = 1


class State(NamedTuple):
    """Where the attacks in turn stand between two iterations."""

    x_adv: Tensor  # (B,C,H,W) what would be returned now
    parts: tuple[Any, ...]  # the attacks' own states
    i: Tensor  # (B,) int64 on the CPU: steps done, over all attacks


@dataclass(frozen=True)
class Union(Attack):
    """The steps of all `attacks` in turn. When all are done with an image, their points are compared by mean margin
    over `confirm` samples that no attack has used; a tie keeps the earlier point. Until then the point of the attack at
    work would be returned. The point of a single attack is compared with nothing.
    """

    attacks: Mapping[str, Attack]
    confirm: int = 20

    def __post_init__(self):
        if not self.attacks or self.confirm < 1:
            raise ValueError(f"need attacks and confirm >= 1, got {self.attacks} and {self.confirm}")
        none = [name for name, attack in self.attacks.items() if not isinstance(attack, Attack)]
        if none:
            raise ValueError(
                f"need every part of the union as an attack, got attack.attacks.{none[0]}={self.attacks[none[0]]!r}"
            )
        idle = [type(attack).__name__ for attack in self.attacks.values() if attack.steps < 1]
        if idle:
            raise ValueError(f"need attacks of at least one step, got {', '.join(idle)}")

    @property
    def steps(self) -> int:
        return sum(attack.steps for attack in self.attacks.values())

    @property
    def samples(self) -> int:
        return max(attack.samples for attack in self.attacks.values())

    @property
    def select(self) -> str:
        first, *others = self.attacks.values()
        return "best" if others else first.select

    @property
    def keeps_best(self) -> bool:
        first, *others = self.attacks.values()
        return bool(others) or first.keeps_best

    @property
    def selection_samples(self) -> int:
        first, *others = self.attacks.values()
        return self.confirm if others else first.selection_samples

    @property
    def candidates(self) -> int:
        return sum(attack.candidates for attack in self.attacks.values())

    @property
    def norms(self) -> tuple[str, ...]:
        """Those of all parts, but for flows: a union's point has no room for the flow that certifies it."""
        first, *others = self.attacks.values()
        return tuple(norm for norm in first.norms if norm != "flow" and all(norm in attack.norms for attack in others))

    def check_classes(self, classes: int) -> None:
        for attack in self.attacks.values():
            attack.check_classes(classes)

    @property
    def is_ensemble(self) -> bool:
        return True

    def members(self, classes: int) -> Mapping[str, Attack]:
        return dict(self.attacks)

    def parts(self) -> tuple[Part, ...]:
        return tuple(
            part._replace(name=part.name or name) for name, attack in self.attacks.items() for part in attack.parts()
        )

    def budget(self) -> dict[str, int]:
        largest: dict[str, int] = {}
        for attack in self.attacks.values():
            largest |= {key: max(value, largest.get(key, 0)) for key, value in attack.budget().items()}
        return largest

    def with_budget(self, **changes: Callable[[int], int]) -> Self:
        attacks = {name: attack.with_budget(**changes) for name, attack in self.attacks.items()}
        return dataclasses.replace(self, attacks=attacks)

    def countable(self) -> Self:
        return dataclasses.replace(self, attacks={name: attack.countable() for name, attack in self.attacks.items()})

    @property
    def batch_bound(self) -> bool:
        return any(attack.batch_bound for attack in self.attacks.values())

    @property
    def phase_ends(self) -> tuple[int, ...]:
        ends, begin = [], 0
        for attack in self.attacks.values():
            ends += [begin + end for end in attack.phase_ends]
            begin += attack.steps
        return tuple(ends)

    def current(self, state: State) -> State:
        """The current iterate of the attack at work; between two attacks, the point of the first."""
        x_adv, begin = state.x_adv, 0
        for attack, part in zip(self.attacks.values(), state.parts, strict=True):
            at_work = (state.i > begin) & (state.i < begin + attack.steps)
            x_adv, begin = where(at_work, attack.current(part).x_adv, x_adv), begin + attack.steps
        return state._replace(x_adv=x_adv)

    def says(self, through: str) -> str:
        parts = "".join(f"\n  {name}: {attack.says(through)}" for name, attack in self.attacks.items())
        if len(self.attacks) == 1:
            return f"a single attack, so nothing is compared{parts}"
        return f"the strongest of {len(self.attacks)} by {self.confirm} fresh samples{parts}"

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        parts = tuple(attack.start(model, x, y, threat, rng.draw(k)) for k, attack in enumerate(self.attacks.values()))
        return State(x_adv=parts[0].x_adv, parts=parts, i=torch.zeros(len(x), dtype=torch.long))

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        x_adv, parts, begin = state.x_adv, list(state.parts), 0
        for k, attack in enumerate(self.attacks.values()):
            at_work = (state.i >= begin) & (state.i < begin + attack.steps)  # (B,): images that this attack is at
            if bool(at_work.any()):
                parts[k] = where(at_work, attack.step(model, parts[k], x, y, threat, rng.draw(Sub.ATTACK)), parts[k])
                x_adv = where(at_work, parts[k].x_adv, x_adv)
            begin += attack.steps
        done = state.i + 1 == self.steps
        if len(parts) > 1 and bool(done.any()):
            points = [part.x_adv for part in parts]
            x_adv = where(done, strongest(model, points, y, rng.draw(Sub.SELECTION), self.confirm, among=done), x_adv)
        return State(x_adv=x_adv, parts=tuple(parts), i=state.i + 1)
