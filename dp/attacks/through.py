"""Any attack, led by another gradient of the same defence: BPDA with the identity (Athalye et al. 2018), transfer from
the bare classifier, or a mask that the input moves.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from dp.attacks.base import Attack, boundaries, is_batch_bound, newest, norms
from dp.defense.interface import Model
from dp.rng import Streams
from dp.threat_models.ball import GRADIENTS, ThreatModel

WORDS = {
    "full": "all of it",
    "surrogate": "its cheaper copy",
    "adjoint": "the continuous adjoint in place of its derivative",
    "bpda": "the identity in place of its derivative",
    "blind": "the bare classifier, which knows no purification",
    "mask_soft": "a soft mask that the input moves",
    "mask_straight_through": "a soft mask's derivative in place of the hard one's, which is zero",
}


@dataclass(frozen=True)
class Through:
    """`attack` on the view `grad` of the defence it is given (see `Model.view`): its candidates are found and chosen
    there, and judged on the defence itself like any other's.
    """

    attack: Attack
    grad: str

    def __post_init__(self):
        if not hasattr(self.attack, "step"):
            raise ValueError(f"need attack.attack as an attack, got {self.attack!r}")
        if self.grad not in GRADIENTS:
            raise ValueError(f"need grad among {', '.join(GRADIENTS)}, got grad={self.grad!r}")

    @property
    def steps(self) -> int:
        return self.attack.steps

    @property
    def eot(self) -> int:
        return self.attack.eot

    @property
    def select(self) -> str:
        return self.attack.select

    @property
    def confirm(self) -> int:
        return getattr(self.attack, "confirm", 0)

    @property
    def batch_bound(self) -> bool:
        return is_batch_bound(self.attack)

    @property
    def norms(self) -> tuple[str, ...]:
        return norms(self.attack)

    @property
    def boundaries(self) -> tuple[int, ...]:
        return boundaries(self.attack)

    def newest(self, state: Any) -> Any:
        return newest(self.attack, state)

    def says(self, through: str) -> str:
        return self.attack.says(f"{through}, by {WORDS[self.grad]}")

    def start(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> NamedTuple:
        return self.attack.start(model.view(self.grad), x, y, threat, rng)

    def step(self, model: Model, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> NamedTuple:
        return self.attack.step(model.view(self.grad), state, x, y, threat, rng)
