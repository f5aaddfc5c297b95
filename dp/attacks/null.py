"""The null control: random noise of the attack's size, selected as the attack selects (evaluation.md section 1)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dp.attacks import Model
from dp.rng import Streams
from dp.threat import ThreatModel


class State(NamedTuple):
    x_adv: Tensor
    best: Tensor


@dataclass(frozen=True)
class Null:
    """`steps` candidates of uniform noise (on the sphere in l2); keeps the `last`, or the `best` by mean loss over
    `eot` draws. `ends`: the attack's boundaries, so that a judge looks at as many candidates.
    """

    steps: int
    eot: int
    select: str
    ends: tuple[int, ...] = ()

    @property
    def boundaries(self) -> tuple[int, ...]:
        return self.ends or (self.steps,)

    def says(self, through: str) -> str:
        return f"{self.steps} candidates of random noise, the {self.select} of them on {self.eot} draws of {through}"

    def start(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        return State(threat.noise(x, rng), x.new_full((len(x),), -torch.inf))

    def step(self, model: Model, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        candidate = threat.noise(x, rng)
        if self.select == "last":
            return State(candidate, state.best)
        loss = model.loss(candidate, y, rng.draw(0), self.eot)
        wins = loss > state.best
        return State(torch.where(wins.view(-1, 1, 1, 1), candidate, state.x_adv), torch.where(wins, loss, state.best))
