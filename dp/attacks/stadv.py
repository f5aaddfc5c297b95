"""StAdv (Xiao et al. 2018, arXiv 1801.02612) as DiffPure (Nie et al. 2022) runs it, with expectation over samples: a
flow moves the pixels and their values stay.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dp.adam import Moments, adam, moments
from dp.attacks.base import Attack, Stream
from dp.attacks.selection import strongest
from dp.attacks.state import where
from dp.defense.interface import Defense
from dp.objectives import with_margin
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel
from dp.threat_models.flow import FlowModel, roughness, warp
from dp.transfer import sent


class State(NamedTuple):
    """Where StAdv stands between two iterations."""

    x_adv: Tensor  # (B,C,H,W) what would be returned now ...
    proof: Tensor  # (B,2,H,W) ... and its certificate of feasibility: the flow
    flow: Tensor  # (B,2,H,W) the iterate
    moments: Moments
    best: Tensor  # (B,) mean margin of x_adv over its samples
    i: Tensor  # (B,) int64 on the CPU: steps done


@dataclass(frozen=True)
class StAdv(Attack):
    """`iterations` Adam steps of `step_size` on the mean loss over `eot` samples less `smooth` / eps times the flow's
    roughness; after each the flow is clipped to the bound. The first flow is zero.

    `loss`: `margin`, or `ce`. In the end `confirm` fresh samples choose, by mean margin, between the flow of the
    largest margin and the last one. A random flow stands in for both until the iterate has moved, so the returned image
    is never clean. Differs: from DiffPure's code in that beyond the edge lies the edge pixel, not black; and the best
    flow is chosen by the margin alone, and is the flow that had it, not the one after.
    """

    iterations: int
    eot: int
    step_size: float = 0.01
    smooth: float = 0.0025
    loss: str = "margin"
    confirm: int = 20

    def __post_init__(self):
        if min(self.iterations, self.eot, self.confirm) < 1:
            raise ValueError(f"need iterations, eot, confirm >= 1, got {self.iterations}, {self.eot}, {self.confirm}")
        if self.step_size <= 0 or self.smooth < 0:
            raise ValueError(f"need step_size > 0 and smooth >= 0, got {self.step_size} and {self.smooth}")
        if self.loss not in ("margin", "ce"):
            raise ValueError(f"need loss margin or ce, got {self.loss!r}")

    @property
    def steps(self) -> int:
        return self.iterations

    @property
    def samples(self) -> int:
        return self.eot

    @property
    def selection_samples(self) -> int:
        return self.confirm

    @property
    def norms(self) -> tuple[str, ...]:
        return ("flow",)

    @property
    def phase_ends(self) -> tuple[int, ...]:
        """Before and after the last step, which ends with the choice."""
        return tuple(k for k in (self.steps - 1, self.steps) if k)

    def says(self, through: str) -> str:
        what = (
            f"StAdv on {self.loss}, {self.steps} steps along the mean gradient of {self.eot} samples, through {through}"
        )
        return f"{what}; {self.confirm} fresh samples choose what comes back"

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        x_adv, proof = threat.proven_noise(x, rng)
        still, none = torch.zeros_like(proof), x.new_full((len(x),), -torch.inf)
        i = torch.zeros(len(x), dtype=torch.long)
        return State(x_adv=x_adv, proof=proof, flow=still, moments=moments(still), best=none, i=i)

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        assert isinstance(threat, FlowModel), "StAdv needs a bound on flows"
        flow = state.flow.detach().requires_grad_()
        moved = warp(x, flow)
        values, grad = model.loss_gradient(moved.detach(), y, rng.draw(Stream.QUERY), self.eot, with_margin(self.loss))
        gain = (grad * moved).sum() - self.smooth / threat.eps * roughness(flow).sum()
        (slope,) = torch.autograd.grad(gain, flow)
        wins = (values[:, 1] > state.best) & _moves(state.flow)
        now = (moved.detach(), state.flow, values[:, 1])
        x_adv, proof, best = where(wins, now, (state.x_adv, state.proof, state.best))
        add, after = adam(state.moments, slope, state.i, self.step_size)
        onwards, last = threat.clip(state.flow + add), state.i + 1 == self.iterations
        if bool(last.any()):
            points = [(x_adv, proof), (warp(x, onwards), onwards)]
            chosen = strongest(model, points, y, rng.draw(Stream.SELECTION), self.confirm, among=last)
            x_adv, proof = where(sent(last, x.device) & _moves(onwards), chosen, points[0])
        return State(x_adv=x_adv, proof=proof, flow=onwards, moments=after, best=best, i=state.i + 1)


def _moves(flow: Tensor) -> Tensor:
    """(B,) bool: anywhere."""
    return (flow != 0).flatten(1).any(dim=1)
