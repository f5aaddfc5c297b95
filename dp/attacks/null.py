"""The null control: random noise of the attack's size, selected as the attack selects (evaluation.md section 1)."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dp.attacks.state import where
from dp.defense.interface import Model
from dp.objectives import margin
from dp.rng import Streams
from dp.threat_models.ball import OPTIONS, ThreatModel


class State(NamedTuple):
    x_adv: Tensor
    best: Tensor
    proof: Tensor  # see ThreatModel.proven_noise


@dataclass(frozen=True)
class Null:
    """`steps` candidates of uniform noise (on the sphere in l2); keeps the `last`, or the `best` by mean margin, each
    compared with the one kept so far on the same `eot` fresh draws. `ends`: the attack's boundaries, so that a judge
    looks as often.
    """

    steps: int
    eot: int
    select: str
    ends: tuple[int, ...] = ()
    grad: ClassVar[str] = "values"
    norms: ClassVar[tuple[str, ...]] = tuple(OPTIONS)

    def __post_init__(self):
        if min(self.steps, self.eot) < 1 or self.select not in ("last", "best"):
            raise ValueError(
                f"need steps, eot >= 1, select last or best, got {self.steps}, {self.eot}, {self.select!r}"
            )

    @property
    def boundaries(self) -> tuple[int, ...]:
        return self.ends or (self.steps,)

    def says(self, through: str) -> str:
        return f"{self.steps} candidates of random noise, the {self.select} of them on {self.eot} draws of {through}"

    def start(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        x_adv, proof = threat.proven_noise(x, rng)
        return State(x_adv, x.new_full((len(x),), -torch.inf), proof)

    def step(self, model: Model, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        candidate, proof = threat.proven_noise(x, rng)
        if self.select == "last":
            return State(candidate, state.best, proof)
        value, before = (model.loss(x, y, rng.draw(0), self.eot, margin) for x in (candidate, state.x_adv))
        wins = (value > before) | state.best.isinf()  # the start is no candidate
        return where(wins, State(candidate, value, proof), state._replace(best=before))
