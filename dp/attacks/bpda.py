"""BPDA+EOT as Hill et al. (2021, arXiv 2005.13525) run it and DiffPure after them: the loss of the mean logits, the
identity in place of the purification's derivative.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dp.attacks.base import Attack, Stream
from dp.defense.interface import Defense
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel


class State(NamedTuple):
    """Where BPDA stands between two iterations."""

    x_adv: Tensor  # (B,C,H,W) the iterate


@dataclass(frozen=True)
class BPDA(Attack):
    """`iterations` steps of `step_size` (None: 2.5 eps / iterations) up the cross-entropy of the mean logits over `eot`
    samples, from the image on.

    Their test for a break, first with few and then with many samples, is `judge` of protocol=hill. Differs: the
    authors' test reuses the samples of the gradient, and ours has samples of its own; the two are equal in law.
    """

    iterations: int
    eot: int
    step_size: float | None

    def __post_init__(self):
        if min(self.iterations, self.eot) < 1 or (self.step_size is not None and self.step_size <= 0):
            given = f"{self.iterations}, {self.eot}, {self.step_size}"
            raise ValueError(f"need iterations, eot >= 1 and step_size > 0 or null, got {given}")

    @property
    def steps(self) -> int:
        return self.iterations

    @property
    def samples(self) -> int:
        return self.eot

    @property
    def select(self) -> str:
        return "last"

    @property
    def gradient(self) -> str:
        return "bpda"

    def reach(self, threat: ThreatModel) -> float | None:
        return None if self.step_size is None else self.iterations * self.step_size

    def says(self, through: str) -> str:
        what = f"BPDA, {self.steps} steps up the loss of the mean logits of {self.eot} samples, through {through}"
        return f"{what}, by the identity in place of its derivative"

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        return State(x)

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        model = model.gradient_mode(self.gradient)
        with torch.no_grad():
            mean = model.logits(state.x_adv, rng.draw(Stream.QUERY), self.eot).mean(dim=0)  # (B,K)
        with torch.enable_grad():
            leaf = mean.requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(leaf, y, reduction="sum"), leaf)  # (B,K)

        def along_slope(logits: Tensor, y: Tensor) -> Tensor:
            """Linear in each draw's logits: its mean over the same samples has the gradient of the mean's loss."""
            return (logits * slope.repeat(len(y) // len(slope), 1)).sum(dim=1)

        size = 2.5 * threat.eps / self.iterations if self.step_size is None else self.step_size
        _, grad = model.loss_gradient(state.x_adv, y, rng.draw(Stream.QUERY), self.eot, along_slope)
        return State(threat.project(threat.ascend(state.x_adv, grad, size), x))
