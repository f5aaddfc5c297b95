"""Any attack in another gradient mode of the same defense: BPDA with the identity (Athalye et al. 2018), transfer from
the bare classifier, or a mask that the input moves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dp.attacks.base import FULL, Attack, Part
from dp.attacks.wrapper import Wrapped
from dp.defense.interface import Defense
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel

MODES = {  # the common gradient modes in words; another one is called by its name in the purifier's yaml
    "full": "its exact gradient",
    "surrogate": "the purifier's cheaper surrogate",
    "adjoint": "the continuous adjoint in place of the derivative",
    "bpda": "the identity in place of the derivative (BPDA)",
    "blind": "the bare classifier, which knows no purification",
    "mask_soft": "a soft mask that the input moves",
    "mask_straight_through": "a soft mask's derivative in place of the hard mask's, which is zero",
}


def mode_words(mode: str) -> str:
    """A gradient mode in words."""
    return MODES.get(mode, f"its gradient variant {mode}")


@dataclass(frozen=True)
class Through(Wrapped):
    """`attack` in the gradient mode `grad` of the defense that it is given (see `Defense.gradient_mode`). It finds and
    chooses its points there; they are evaluated on the defense itself, as those of any other attack.
    """

    grad: str

    def __post_init__(self):
        super().__post_init__()
        if not self.grad:
            raise ValueError(f"need the name of a gradient mode, got grad={self.grad!r}")

    @property
    def is_baseline(self) -> bool:
        return False

    @property
    def is_ensemble(self) -> bool:
        return False

    def members(self, classes: int) -> Mapping[str, Attack]:
        return {}

    def parts(self) -> tuple[Part, ...]:
        modes = () if self.grad == FULL else (self.grad,)
        return tuple(part._replace(modes=(*modes, *part.modes)) for part in self.attack.parts())

    def says(self, through: str) -> str:
        return self.attack.says(f"{through}, by {mode_words(self.grad)}")

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        return self.attack.start(model.gradient_mode(self.grad), x, y, threat, rng)

    def step(self, model: Defense, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        return self.attack.step(model.gradient_mode(self.grad), state, x, y, threat, rng)
