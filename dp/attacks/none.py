"""No attack: the image comes back as it is."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from dp.threat_models.ball import OPTIONS


class State(NamedTuple):
    x_adv: Tensor


@dataclass(frozen=True)
class NoAttack:
    """Zero steps."""

    steps: int = 0
    eot: int = 1
    select: str = "last"
    grad: ClassVar[str] = "values"
    norms: ClassVar[tuple[str, ...]] = tuple(OPTIONS)

    def says(self, through: str) -> str:
        return "no attack"

    def start(self, model, x: Tensor, y: Tensor, threat, rng) -> State:
        return State(x)

    def step(self, model, state: State, x: Tensor, y: Tensor, threat, rng) -> State:
        return state
