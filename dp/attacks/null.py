"""The random-noise baseline (null control): noise of the attack's size, selected as the attack selects its points."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dp.attacks.base import VALUES, Attack, Stream
from dp.attacks.state import where
from dp.defense.interface import Defense
from dp.objectives import margin
from dp.rng import Streams
from dp.threat_models.ball import OPTIONS, ThreatModel


class State(NamedTuple):
    """Where the null control stands between two iterations."""

    x_adv: Tensor  # (B,C,H,W) what would be returned now
    best: Tensor  # (B,) its mean margin over the samples that evaluated it last
    proof: Tensor  # (B,...) see ThreatModel.proven_noise


@dataclass(frozen=True)
class Null(Attack):
    """`steps` candidates of uniform noise (on the sphere in l2). It returns the `last`, or the `best` by mean margin,
    where each candidate is compared with the best so far on the same `eot` fresh samples. `ends`: the attack's phase
    ends, so that a judge evaluates both equally often.
    """

    steps: int = 1  # pyright: ignore[reportIncompatibleMethodOverride]
    eot: int = 1
    select: str = "best"  # pyright: ignore[reportIncompatibleMethodOverride]
    ends: tuple[int, ...] = ()

    def __post_init__(self):
        if min(self.steps, self.eot) < 1 or self.select not in ("last", "best"):
            raise ValueError(
                f"need steps, eot >= 1, select last or best, got {self.steps}, {self.eot}, {self.select!r}"
            )

    @property
    def samples(self) -> int:
        return self.eot

    @property
    def gradient(self) -> str:
        return VALUES

    @property
    def norms(self) -> tuple[str, ...]:
        return tuple(OPTIONS)

    @property
    def phase_ends(self) -> tuple[int, ...]:
        return self.ends or (self.steps,)

    def says(self, through: str) -> str:
        return f"{self.steps} candidates of random noise, the {self.select} of them on {self.eot} samples of {through}"

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        x_adv, proof = threat.proven_noise(x, rng)
        return State(x_adv=x_adv, best=x.new_full((len(x),), -torch.inf), proof=proof)

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        candidate, proof = threat.proven_noise(x, rng)
        if self.select == "last":
            return State(x_adv=candidate, best=state.best, proof=proof)
        value, before = (model.loss(x, y, rng.draw(Stream.QUERY), self.eot, margin) for x in (candidate, state.x_adv))
        wins = (value > before) | state.best.isinf()  # the start is no candidate
        return where(wins, State(x_adv=candidate, best=value, proof=proof), state._replace(best=before))
