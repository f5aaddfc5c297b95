"""Spatial transforms by a flow (Xiao et al. 2018, arXiv 1801.02612): every pixel is taken from somewhere near by."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dp.rng import Streams
from dp.threat_models.ball import OPTIONS, SLACK, ThreatModel

GUARD = 1e-10  # keeps the root smooth where neighbors move alike; StAdv's own value


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Pixel (i,j) of the result is x at (i,j) plus the flow, bilinear; beyond the edge lies the edge pixel.

    x (B,C,H,W); flow (B,2,H,W): to the right, then downwards, in halves of the image's side, as torch's grids count, so
    that .05 are .8 pixels at 32. Zero flow gives x itself, bit by bit. No value leaves the range of x.
    """
    h, w = x.shape[2:]
    column = torch.arange(w, device=x.device).view(1, 1, w) + flow[:, 0] * (w / 2)  # (B,H,W)
    row = torch.arange(h, device=x.device).view(1, h, 1) + flow[:, 1] * (h / 2)
    left, top = column.detach().floor(), row.detach().floor()
    across, down = (column - left).unsqueeze(1), (row - top).unsqueeze(1)  # (B,1,H,W) in [0,1)

    def at(i: Tensor, j: Tensor) -> Tensor:
        index = i.clamp(0, h - 1) * w + j.clamp(0, w - 1)  # (B,H,W)
        return x.flatten(2).gather(2, index.long().flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)).view(x.shape)

    upper = at(top, left) + across * (at(top, left + 1) - at(top, left))
    lower = at(top + 1, left) + across * (at(top + 1, left + 1) - at(top + 1, left))
    out = upper + down * (lower - upper)
    least, most = x.detach().amin(dim=(1, 2, 3), keepdim=True), x.detach().amax(dim=(1, 2, 3), keepdim=True)
    out = out + (out.clamp(least, most) - out).detach()  # rounding alone leaves the range, so the slope stays
    return torch.empty_like(x).copy_(out)  # in the memory format of x


def roughness(flow: Tensor) -> Tensor:
    """(B,): how differently neighbors move, |difference|_2 over pixels and their four neighbors (StAdv, eq. 4)."""
    total = flow.new_zeros(len(flow))
    for difference in (flow.diff(dim=2), flow.diff(dim=3)):
        total = total + 2 * (difference.square().sum(dim=1) + GUARD).sqrt().flatten(1).sum(dim=1)
    return total


@dataclass(frozen=True)
class FlowModel(ThreatModel):
    """Images that a flow within +-`eps` (in both directions, in halves of the image's side: see `warp`) makes of x:
    StAdv's threat model as DiffPure sets it, no ball of pixels.

    An image does not show its flow, so an attack's state carries it as a certificate of feasibility: `proof` (B,2,H,W),
    with x_adv = warp(x, proof).
    """

    norm: str = "flow"
    eps: float = 0.05
    norms: ClassVar[tuple[str, ...]] = ("flow",)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        raise ValueError(f"need the flow to project an image onto threat_model={OPTIONS['flow']}, got the image alone")

    def ascend(self, x_adv: Tensor, grad: Tensor, step: float | Tensor) -> Tensor:
        raise ValueError(f"need an attack on flows for threat_model={OPTIONS['flow']}, got one that moves pixels")

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        raise ValueError(f"need the flow to measure an image under threat_model={OPTIONS['flow']}, got the image alone")

    def largest(self, x: Tensor) -> float:
        return 2.0  # the whole image, in halves of its side

    def clip(self, flow: Tensor) -> Tensor:
        """The flow within the bound."""
        return flow.clamp(-self.eps, self.eps)

    def random_flow(self, x: Tensor, rng: Streams) -> Tensor:
        """Uniform in +-eps at every pixel, (B,2,H,W)."""
        return self.clip(self.eps * (2 * rng.uniform_like(x.new_empty(len(x), 2, *x.shape[2:])) - 1))

    def random_start(self, x: Tensor, rng: Streams) -> Tensor:
        return warp(x, self.random_flow(x, rng))

    def noise(self, x: Tensor, rng: Streams) -> Tensor:
        """x moved by a random flow."""
        return self.random_start(x, rng)

    def proven_noise(self, x: Tensor, rng: Streams) -> tuple[Tensor, Tensor]:
        flow = self.random_flow(x, rng)
        return warp(x, flow), flow

    def unchanged(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 2, *x.shape[2:])

    def admit(self, state: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """The warp of x by the state's flow, computed anew, and the flow's largest component."""
        flow = state.proof
        if flow.shape != (len(x), 2, *x.shape[2:]):
            raise ValueError(f"need a flow {(len(x), 2, *x.shape[2:])} as the state's proof, got {tuple(flow.shape)}")
        size = flow.detach().double().abs().flatten(1).amax(dim=1)
        if not bool((size <= self.eps + SLACK).all()):  # NaN compares false
            raise ValueError(f"need a flow within {self.eps}, got {float(size.max())}")
        x_adv = warp(x, flow)
        off = (x_adv - state.x_adv).abs()
        if not bool((off <= SLACK).all()):
            raise ValueError(f"need attacked images that are their flow's warp, got a difference of {float(off.max())}")
        return x_adv, size.clamp(max=self.eps)
