"""A linf ball whose perturbation stays in a region of each image, such as the box of the object or all but that."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dp.threat_models.ball import ThreatModel


@dataclass(frozen=True)
class RegionModel(ThreatModel):
    """Images within `eps` of x in linf that equal x outside its region, bit for bit.

    `region`: clean images (B,C,H,W) in [0,1] to masks (B,1,H,W), 1 where pixels may change. `outside`: pixels may
    change where the mask is 0 instead. Raises ValueError without a region.
    """

    region: Callable[[Tensor], Tensor] | None = None
    outside: bool = False
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def __post_init__(self):
        super().__post_init__()
        if self.region is None:
            raise ValueError("need threat_model.region, which says where pixels may change, got none")

    def allowed(self, x: Tensor) -> Tensor:
        """(B,1,H,W) bool: where the pixels of x (B,C,H,W) may change."""
        assert self.region is not None, "checked at the start"
        return (self.region(x) > 0.5) != self.outside

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """x_adv in the ball and the box [0,1], and x itself outside the region."""
        return torch.where(self.allowed(x), super().project(x_adv, x), x)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """(B,) float64: the length in linf, infinite if a pixel outside the region of x differs."""
        strays = ((x_adv != x) & ~self.allowed(x)).flatten(1).any(dim=1)
        return super().distance(x_adv, x).masked_fill(strays, torch.inf)
