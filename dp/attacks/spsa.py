"""SPSA (Uesato et al. 2018, arXiv 1802.05666): gradients from differences along random signs, then Adam."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dp.attacks.adam import Moments, adam, moments
from dp.attacks.selection import strongest
from dp.attacks.state import where
from dp.defense.interface import Model
from dp.objectives import margin
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel


class State(NamedTuple):
    x_adv: Tensor  # (B,C,H,W) what would be returned now
    x: Tensor  # (B,C,H,W) the iterate
    moments: Moments
    best: Tensor  # (B,) mean margin around x_adv
    i: Tensor  # (B,) int64 on the CPU: steps done


@dataclass(frozen=True)
class SPSA:
    """`iterations` Adam steps of `step_size` on the mean margin, whose slope comes from `samples` pairs x +- delta v, v
    of random signs, each asked with `eot` draws that both points of a pair share. No gradient of the defence is used.

    The best iterate by the mean over all its pairs is tried against the last one with `confirm` fresh draws.
    """

    iterations: int
    eot: int
    samples: int = 128
    delta: float = 0.01
    step_size: float = 0.01
    confirm: int = 20
    select: str = "best"
    grad: ClassVar[str] = "values"  # it asks for no gradient

    def __post_init__(self):
        if min(self.iterations, self.eot, self.samples, self.confirm) < 1 or min(self.delta, self.step_size) <= 0:
            counts = f"{self.iterations}, {self.eot}, {self.samples}, {self.confirm}, {self.delta}, {self.step_size}"
            raise ValueError(f"need iterations, eot, samples, confirm >= 1 and delta, step_size > 0, got {counts}")
        if self.select != "best":
            raise ValueError(f"need select best, got {self.select!r}")

    @property
    def steps(self) -> int:
        return self.iterations

    def says(self, through: str) -> str:
        return f"SPSA, {self.steps} steps of {2 * self.samples} queries of {self.eot} draws, values alone, of {through}"

    def start(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        x0, none = threat.random_start(x, rng), x.new_full((len(x),), -torch.inf)
        return State(x0, x0, moments(x), none, torch.zeros(len(x), dtype=torch.long))

    def step(self, model: Model, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        value, slope = self._slope(model, state.x, y, rng)
        wins = value > state.best
        x_adv, best = where(wins, (state.x, value), (state.x_adv, state.best))
        add, after = adam(state.moments, slope, state.i, self.step_size)
        at, last = threat.project(state.x + add, x), state.i + 1 == self.iterations
        if bool(last.any()):
            x_adv = where(last, strongest(model, [x_adv, at], y, rng.draw(0), self.confirm, among=last), x_adv)
        return State(x_adv, at, after, best, state.i + 1)

    def _slope(self, model: Model, x: Tensor, y: Tensor, rng: Streams) -> tuple[Tensor, Tensor]:
        """Mean margin around x, (B,), and the estimate of its gradient, (B,C,H,W). Points may leave the box by delta,
        and are cut.
        """
        value, slope = x.new_zeros(len(x)), torch.zeros_like(x)
        for k in range(self.samples):
            mine = rng.draw(1 + k)
            signs = torch.where(mine.draw(0).uniform_like(x) < 0.5, -1.0, 1.0).to(x)
            up, down = (
                model.loss((x + side * self.delta * signs).clamp(0, 1), y, mine.draw(1), self.eot, margin)
                for side in (1, -1)
            )
            value, slope = value + (up + down) / 2, slope + ((up - down) / (2 * self.delta)).view(-1, 1, 1, 1) * signs
        return value / self.samples, slope / self.samples
