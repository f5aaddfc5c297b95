"""DiffAttack (Kang et al. 2023, arXiv 2311.16124): APGD that also drives the reverse process off the forward one."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from dp.attacks.apgd import APGD, State
from dp.attacks.base import Stream
from dp.attacks.union import Union
from dp.defense.interface import Defense
from dp.diffusion.sampling import to_pm1
from dp.objectives import with_margin
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel

ROUNDS = ("ce", "dlr")  # the paper's Appendix D.1


def diffattack(iterations: int, eot: int, weight: float = 1.0, confirm: int = 20, rho: float = 0.75) -> Union:
    """A round on the cross-entropy and one on the difference of logits ratio, each plus `weight` (the paper's lambda)
    times `deviation`; the stronger of the two points by `confirm` fresh samples. The other arguments are APGD's.
    """
    rounds = {loss: Deviating(iterations, eot, loss, confirm=confirm, rho=rho, weight=weight) for loss in ROUNDS}
    return Union(rounds, confirm)


@dataclass(frozen=True)
class Deviating(APGD):
    """APGD on its loss plus `weight` times `deviation`. `weight` 0, or a purification without states, is APGD."""

    weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.weight < 0 or self.loss == "targeted" or self.target is not None:
            given = f"{self.weight}, {self.loss!r}, {self.target!r}"
            raise ValueError(f"need weight >= 0 and a loss without targets, got {given}")

    @property
    def objective(self) -> str:
        return f"DiffAttack, {self.weight:g} x deviation on the way plus {self.loss}"

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        auxiliary = functools.partial(deviation, weight=self.weight) if self.weight > 0 else None
        values, grad = model.loss_gradient(
            state.x, y, rng.draw(Stream.QUERY), self.eot, with_margin(self.loss), auxiliary
        )
        return self.moved(model, state, values, grad, x, y, threat, rng)


def deviation(x: Tensor, states: Sequence[tuple[float, Tensor]], weight: float = 1.0) -> Tensor:
    """`weight` times the mean over the states (sigma, z) of a purification, and over pixels, of
    |z - z_forward|^2 / (1 + sigma^2), (B,): the squared distance from the forward process at the same level, between
    variance-preserving states as in the paper (Eq. 8, alpha = 1 / number of states); 0 without states.

    The forward noise is not drawn. Given the noise w_T = z_T - x that the purification drew, the forward process
    x + w_sigma is a Brownian bridge, and the mean of |z - x - w_sigma|^2 over it is |z - x - (sigma / sigma_T)^2 w_T|^2
    plus a number that does not depend on x: so the gradient is that of the expectation. A purification that rises to a
    higher level than the state before begins a way of its own there, from the same x.
    Differs: the paper leaves d open, this is the mean square of later code, which takes one noise for all levels.
    """
    total = x.new_zeros(len(x))
    if not states:
        return total
    size = states[0][1].shape[2:]  # the denoiser's own, if it has one
    clean = to_pm1(x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False))
    top = before = states[0][0]
    noise = states[0][1] - clean
    for sigma, z in states:
        if sigma > before:
            top, noise = sigma, z - clean
        before = sigma
        forward = clean + (sigma / top) ** 2 * noise
        total = total + ((z - forward) ** 2).flatten(1).mean(dim=1) / (1 + sigma**2)
    return weight * total / len(states)
