"""The random-noise baseline (null control): noise of the attack's size, selected as the attack selects its points."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dp.attacks.base import VALUES, Attack, Stream
from dp.attacks.selection import strongest
from dp.attacks.state import where
from dp.defense.interface import Defense
from dp.objectives import margin
from dp.rng import Streams
from dp.threat_models.ball import OPTIONS, ThreatModel
from dp.transfer import sent


class Point(NamedTuple):
    """An image and the certificate that it is feasible."""

    x_adv: Tensor  # (B,C,H,W)
    proof: Tensor  # (B,...) see ThreatModel.proven_noise


class State(NamedTuple):
    """Where the null control stands between two iterations."""

    x_adv: Tensor  # (B,C,H,W) what would be returned now
    proof: Tensor  # (B,...) see ThreatModel.proven_noise
    now: Point  # the current candidate
    top: Point  # this run's candidate of the largest mean margin ...
    best: Tensor  # (B,) ... and that margin
    chosen: Point  # the strongest of the finished runs; before that, the first point
    i: Tensor  # (B,) int64 on the CPU: candidates made


@dataclass(frozen=True)
class Null(Attack):
    """`steps` candidates of uniform noise (on the sphere in l2). It returns the `last`, or the `best` by the mean
    margin over `eot` samples. Each candidate has samples of its own, as the points of an attack have.

    `confirm` > 0: as an attack with selection samples does, it chooses at the end of each run among the run's best
    candidate, its last one and the choice before (at first: a random point), by the mean margin over `confirm` fresh
    samples. `ends`: the attack's phase ends, where its runs end, and where a judge evaluates both equally often.
    """

    steps: int = 1  # pyright: ignore[reportIncompatibleMethodOverride]
    eot: int = 1
    select: str = "best"  # pyright: ignore[reportIncompatibleMethodOverride]
    confirm: int = 0
    ends: tuple[int, ...] = ()

    def __post_init__(self):
        if min(self.steps, self.eot) < 1 or self.confirm < 0 or self.select not in ("last", "best"):
            given = f"{self.steps}, {self.eot}, {self.confirm}, {self.select!r}"
            raise ValueError(f"need steps, eot >= 1, confirm >= 0, select last or best, got {given}")

    @property
    def samples(self) -> int:
        return self.eot

    @property
    def selection_samples(self) -> int:
        return self.confirm

    @property
    def gradient(self) -> str:
        return VALUES

    @property
    def norms(self) -> tuple[str, ...]:
        return tuple(OPTIONS)

    @property
    def phase_ends(self) -> tuple[int, ...]:
        return self.ends or (self.steps,)

    def current(self, state: State) -> State:
        return state._replace(x_adv=state.now.x_adv, proof=state.now.proof)

    def says(self, through: str) -> str:
        what = f"{self.steps} candidates of random noise, the {self.select} of them on {self.eot} samples of {through}"
        return what + (f"; {self.confirm} fresh samples choose what comes back" if self.confirm else "")

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        point = Point(*threat.proven_noise(x, rng))
        best, i = x.new_full((len(x),), -torch.inf), torch.zeros(len(x), dtype=torch.long)
        return State(*point, now=point, top=point, best=best, chosen=point, i=i)

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        now, made = Point(*threat.proven_noise(x, rng)), state.i + 1
        if self.select == "last":
            return state._replace(x_adv=now.x_adv, proof=now.proof, now=now, i=made)
        value = model.loss(now.x_adv, y, rng.draw(Stream.QUERY), self.eot, margin)
        runs = torch.tensor([0, *self.phase_ends]) if self.confirm else torch.tensor([0])
        wins = sent(torch.isin(state.i, runs), value.device) | (value > state.best)  # a run begins anew
        top, best = where(wins, (now, value), (state.top, state.best))
        chosen, ended = state.chosen, torch.isin(made, runs)
        if bool(ended.any()):
            points = [top, now, chosen]
            fresh = strongest(model, points, y, rng.draw(Stream.SELECTION), self.confirm, among=ended)
            chosen = where(ended, fresh, chosen)
        point = where((made >= self.phase_ends[0]) & bool(self.confirm), chosen, top)
        return State(*point, now=now, top=top, best=best, chosen=chosen, i=made)
