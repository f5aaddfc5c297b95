"""No attack: the image comes back as it is."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from dp.attacks.base import VALUES, Attack
from dp.defense.interface import Defense
from dp.rng import Streams
from dp.threat_models.ball import OPTIONS, ThreatModel


class State(NamedTuple):
    """The clean images and the proof that they are the clean images."""

    x_adv: Tensor  # (B,C,H,W) the clean images
    proof: Tensor  # (B,...) see ThreatModel.unchanged


@dataclass(frozen=True)
class NoAttack(Attack):
    """Zero steps."""

    @property
    def steps(self) -> int:
        return 0

    @property
    def samples(self) -> int:
        return 1

    @property
    def select(self) -> str:
        return "last"

    @property
    def gradient(self) -> str:
        return VALUES

    @property
    def norms(self) -> tuple[str, ...]:
        return tuple(OPTIONS)

    def says(self, through: str) -> str:
        return "no attack"

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        return State(x_adv=x, proof=threat.unchanged(x))

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        return state
