"""SPSA (Uesato et al. 2018, arXiv 1802.05666): gradients from differences along random signs, then Adam."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from dp.adam import Moments, adam, moments
from dp.attacks.base import VALUES, Attack
from dp.attacks.selection import strongest
from dp.attacks.state import where
from dp.defense.interface import Defense
from dp.objectives import margin
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel


class Sub(IntEnum):
    """Sub-streams of a step's noise."""

    SELECTION = 0
    PAIR = 1  # of the first direction; those of the others follow


class Pair(IntEnum):
    """Sub-streams of one direction's noise."""

    DIRECTION = 0
    QUERY = 1


class State(NamedTuple):
    """Where SPSA stands between two iterations."""

    x_adv: Tensor  # (B,C,H,W) what would be returned now
    x: Tensor  # (B,C,H,W) the iterate
    moments: Moments
    best: Tensor  # (B,) mean margin around x_adv
    i: Tensor  # (B,) int64 on the CPU: steps done


@dataclass(frozen=True)
class SPSA(Attack):
    """`iterations` Adam steps of `step_size` on the mean margin. Its slope comes from `directions` pairs x +- delta v,
    where v has random signs; both points of a pair are evaluated on the same `eot` samples. No gradient of the defense
    is used.

    `confirm` fresh samples choose between the best iterate by the mean over all its pairs and the last one.
    """

    iterations: int
    eot: int
    directions: int = 128
    delta: float = 0.01
    step_size: float = 0.01
    confirm: int = 20

    def __post_init__(self):
        if min(self.iterations, self.eot, self.directions, self.confirm) < 1 or min(self.delta, self.step_size) <= 0:
            counts = f"{self.iterations}, {self.eot}, {self.directions}, {self.confirm}, {self.delta}, {self.step_size}"
            raise ValueError(f"need iterations, eot, directions, confirm >= 1 and delta, step_size > 0, got {counts}")

    @property
    def steps(self) -> int:
        return self.iterations

    @property
    def samples(self) -> int:
        return self.eot

    @property
    def selection_samples(self) -> int:
        return self.confirm

    @property
    def gradient(self) -> str:
        return VALUES

    def current(self, state: State) -> State:
        return state._replace(x_adv=state.x)

    def says(self, through: str) -> str:
        queries = f"{2 * self.directions} queries of {self.eot} samples"
        return f"SPSA, {self.steps} steps of {queries}, values alone, of {through}"

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        x0, none = threat.random_start(x, rng), x.new_full((len(x),), -torch.inf)
        return State(x_adv=x0, x=x0, moments=moments(x), best=none, i=torch.zeros(len(x), dtype=torch.long))

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        value, slope = self._slope(model, state.x, y, rng)
        wins = value > state.best
        x_adv, best = where(wins, (state.x, value), (state.x_adv, state.best))
        add, after = adam(state.moments, slope, state.i, self.step_size)
        at, last = threat.project(state.x + add, x), state.i + 1 == self.iterations
        if bool(last.any()):
            x_adv = where(
                last, strongest(model, [x_adv, at], y, rng.draw(Sub.SELECTION), self.confirm, among=last), x_adv
            )
        return State(x_adv=x_adv, x=at, moments=after, best=best, i=state.i + 1)

    def _slope(self, model: Defense, x: Tensor, y: Tensor, rng: Streams) -> tuple[Tensor, Tensor]:
        """Mean margin around x, (B,), and the estimate of its gradient, (B,C,H,W). Points may leave the box by delta,
        and are cut.
        """
        value, slope = x.new_zeros(len(x)), torch.zeros_like(x)
        for k in range(self.directions):
            pair = rng.draw(Sub.PAIR + k)
            signs = torch.where(pair.draw(Pair.DIRECTION).uniform_like(x) < 0.5, -1.0, 1.0).to(x)
            up, down = (
                model.loss((x + side * self.delta * signs).clamp(0, 1), y, pair.draw(Pair.QUERY), self.eot, margin)
                for side in (1, -1)
            )
            value, slope = value + (up + down) / 2, slope + ((up - down) / (2 * self.delta)).view(-1, 1, 1, 1) * signs
        return value / self.directions, slope / self.directions
