"""Several attacks one after another on every image; the strongest point stays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dp.attacks.base import Attack, boundaries, is_batch_bound, newest
from dp.attacks.selection import strongest
from dp.attacks.state import where
from dp.defense.interface import Model
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel


class State(NamedTuple):
    x_adv: Tensor  # (B,C,H,W) what would be returned now
    parts: tuple[Any, ...]  # the attacks' own states
    i: Tensor  # (B,) int64 on the CPU: steps done, over all attacks


@dataclass(frozen=True)
class Union:
    """The steps of all `attacks` in turn. When all are done with an image, their points are compared by mean margin
    over `confirm` draws that no attack has seen; a tie keeps the earlier. Until then the point of the last stands.
    """

    attacks: Mapping[str, Attack]
    confirm: int = 20
    select: str = "best"

    def __post_init__(self):
        if not self.attacks or self.confirm < 1 or self.select != "best":
            raise ValueError(
                f"need attacks, confirm >= 1, select best, got {self.attacks}, {self.confirm}, {self.select!r}"
            )
        none = [name for name, attack in self.attacks.items() if not hasattr(attack, "step")]
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
    def eot(self) -> int:
        return max(attack.eot for attack in self.attacks.values())

    @property
    def batch_bound(self) -> bool:
        return any(is_batch_bound(attack) for attack in self.attacks.values())

    @property
    def boundaries(self) -> tuple[int, ...]:
        ends, begin = [], 0
        for attack in self.attacks.values():
            ends += [begin + end for end in boundaries(attack)]
            begin += attack.steps
        return tuple(ends)

    def newest(self, state: State) -> State:
        """Where the attack at work stands; between two of them, what the first has found."""
        x_adv, begin = state.x_adv, 0
        for attack, part in zip(self.attacks.values(), state.parts, strict=True):
            mine = (state.i > begin) & (state.i < begin + attack.steps)
            x_adv, begin = where(mine, newest(attack, part).x_adv, x_adv), begin + attack.steps
        return state._replace(x_adv=x_adv)

    def says(self, through: str) -> str:
        parts = "".join(f"\n  {name}: {attack.says(through)}" for name, attack in self.attacks.items())
        return f"the strongest of {len(self.attacks)} by {self.confirm} fresh draws{parts}"

    def start(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        parts = tuple(attack.start(model, x, y, threat, rng.draw(k)) for k, attack in enumerate(self.attacks.values()))
        return State(parts[0].x_adv, parts, torch.zeros(len(x), dtype=torch.long))  # pyright: ignore[reportAttributeAccessIssue]

    def step(self, model: Model, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        x_adv, parts, begin = state.x_adv, list(state.parts), 0
        for k, attack in enumerate(self.attacks.values()):
            mine = (state.i >= begin) & (state.i < begin + attack.steps)  # (B,): images that this attack is at
            if bool(mine.any()):
                parts[k] = where(mine, attack.step(model, parts[k], x, y, threat, rng.draw(0)), parts[k])
                x_adv = where(mine, parts[k].x_adv, x_adv)
            begin += attack.steps
        done = state.i + 1 == self.steps
        if len(parts) > 1 and bool(done.any()):
            found = [part.x_adv for part in parts]
            x_adv = where(done, strongest(model, found, y, rng.draw(1), self.confirm, among=done), x_adv)
        return State(x_adv, tuple(parts), state.i + 1)
