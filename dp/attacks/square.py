"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search over squares, no gradient, decided on the
mean margin over samples.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dp.attacks.base import VALUES, Attack, Start, Stream
from dp.attacks.state import where
from dp.defense.interface import Defense
from dp.objectives import margin
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel

# Queries (of 10000) after which the share of the image that a square covers is halved once more (the paper's Sec. 5.1).
HALVINGS = torch.tensor([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])


class State(NamedTuple):
    """Where the Square attack stands between two iterations."""

    x_adv: Tensor  # (B,C,H,W) the best so far
    margin: Tensor  # (B,) its mean margin over the samples that evaluated it last
    noisy: Tensor  # (B,) bool: other samples give another margin
    i: Tensor  # (B,) int64 on the CPU: squares tried


@dataclass(frozen=True)
class Square(Attack):
    """`iterations` squares, each evaluated on `eot` samples and kept if the mean margin rises. Where the defense draws
    noise, the square and the incumbent are compared on the same fresh samples, which takes twice the forward passes: an
    incumbent judged by the lucky samples that let it in would shut out all that follow.

    `p_init`: share of the image that the first squares cover. `rescale`: stretch the schedule of sizes, made for 10000
    queries, to `iterations` (the paper's advice; AutoAttack does not). `reach_edges`: windows lie anywhere they fit.
    Differs: the released code draws corners below h - s, so that no window smaller than the image touches its last row
    and column, which keep the noise of the start; with False so do ours.
    """

    iterations: int
    eot: int
    p_init: float = 0.8
    rescale: bool = False
    reach_edges: bool = True

    def __post_init__(self):
        if min(self.iterations, self.eot) < 1 or not 0 < self.p_init <= 1:
            given = f"{self.iterations}, {self.eot}, {self.p_init}"
            raise ValueError(f"need iterations, eot >= 1 and 0 < p_init <= 1, got {given}")

    @property
    def steps(self) -> int:
        return self.iterations

    @property
    def samples(self) -> int:
        return self.eot

    @property
    def gradient(self) -> str:
        return VALUES

    def says(self, through: str) -> str:
        return f"Square, {self.steps} squares, each compared on {self.eot} samples, values alone, of {through}"

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        if threat.norm == "linf":
            x0 = threat.project(x + threat.eps * _signs(x[:, :, :1, :], rng), x)  # vertical stripes
        else:
            delta = _tiles(x, rng)
            x0 = threat.project(x + threat.eps * delta / _norm(delta, (1, 2, 3)), x)
        value, other = (model.loss(x0, y, rng.draw(k), self.eot, margin) for k in (Start.POINT, Start.SURVEY))
        return State(x_adv=x0, margin=value, noisy=value != other, i=torch.zeros(len(x), dtype=torch.long))

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        sides = self._sides(state.i, x, threat.norm)
        propose = _square_linf if threat.norm == "linf" else _squares_l2
        candidate = threat.project(propose(state.x_adv, x, sides, threat.eps, self.reach_edges, rng), x)
        value, incumbent = model.loss(candidate, y, rng.draw(Stream.QUERY), self.eot, margin), state.margin
        if bool(state.noisy.any()):
            again = model.loss(state.x_adv, y, rng.draw(Stream.QUERY), self.eot, margin)
            incumbent = where(state.noisy, again, incumbent)  # slot by slot: no row depends on the rest of its batch
        x_adv = where(value > incumbent, candidate, state.x_adv)
        return state._replace(x_adv=x_adv, margin=torch.maximum(value, incumbent), i=state.i + 1)

    def _sides(self, i: Tensor, x: Tensor, norm: str) -> list[int]:
        """(B,) queries done -> side of each image's next square, in pixels; in l2 odd and at least 3."""
        at = i * 10000 // self.iterations if self.rescale else i
        halvings = (at.view(-1, 1) > HALVINGS).sum(dim=1).tolist()
        height, width = x.shape[2:]
        sides = [max(1, round(math.sqrt(self.p_init / 2**n * height * width))) for n in halvings]
        if norm == "l2":
            sides = [max(3, side) | 1 for side in sides]
        return [min(side, height, width) for side in sides]


def _square_linf(x_adv: Tensor, x: Tensor, sides: list[int], eps: float, reach_edges: bool, rng: Streams) -> Tensor:
    """One square set to +-eps, one sign per channel."""
    corners, signs = _corners(x, sides, reach_edges, rng), _signs(x[:, :, :1, :1], rng)
    candidate = x_adv.clone()
    for b, (side, (top, left)) in enumerate(zip(sides, corners, strict=True)):
        window = (b, slice(None), slice(top, top + side), slice(left, left + side))
        candidate[window] = x[window] + eps * signs[b]
    return candidate


def _squares_l2(x_adv: Tensor, x: Tensor, sides: list[int], eps: float, reach_edges: bool, rng: Streams) -> Tensor:
    """Algorithm 3: the perturbation of one window moves to another one, shaped anew, with all the spare length."""
    into, out_of = _corners(x, sides, reach_edges, rng), _corners(x, sides, reach_edges, rng)
    signs, turns = _signs(x[:, :, :1, :1], rng), rng.uniform_like(x[:, :1, 0, 0])[:, 0].tolist()
    delta, channels = x_adv - x, x.shape[1]
    spare = (eps**2 - delta.square().sum(dim=(1, 2, 3))).clamp(min=0) / channels  # (B,) squared, per channel
    for b, side in enumerate(sides):
        (top, left), (top2, left2) = into[b], out_of[b]
        one = delta[b]  # (C,H,W), a view
        first = (slice(None), slice(top, top + side), slice(left, left + side))
        second = (slice(None), slice(top2, top2 + side), slice(left2, left2 + side))
        both = torch.zeros_like(one[:1])
        both[first], both[second] = 1, 1
        length = ((one * both).square().sum(dim=(1, 2), keepdim=True) + spare[b]).sqrt()  # (C,1,1)
        shape = _bump(side, turns[b] > 0.5).to(x)
        new = signs[b] * shape + one[first] / _norm(one[first], (1, 2))
        one[second] = 0
        one[first] = new / _norm(new, (1, 2)) * length
    return x + eps * delta / _norm(delta, (1, 2, 3))


def _tiles(x: Tensor, rng: Streams) -> Tensor:
    """The l2 start: a grid of bumps, a fifth of the height wide, each with a sign per channel."""
    height, width = x.shape[2:]
    side = max(1, min(height, width) // 5)
    down, across = height // side, width // side
    signs = _signs(x.new_empty(len(x), x.shape[1], down, across), rng)
    turns = rng.uniform_like(x.new_empty(len(x), down, across)) > 0.5
    first, second = ((height - down * side) // 2, (width - across * side) // 2)
    delta = torch.zeros_like(x)
    shapes = torch.stack([_bump(side, False), _bump(side, True)]).to(x)
    for r in range(down):
        for c in range(across):
            tile = shapes[turns[:, r, c].long()].unsqueeze(1) * signs[:, :, r, c, None, None]  # (B,C,side,side)
            at = (slice(first + r * side, first + (r + 1) * side), slice(second + c * side, second + (c + 1) * side))
            delta[:, :, at[0], at[1]] = tile
    return delta


@functools.lru_cache(maxsize=256)
def _bump(side: int, turned: bool) -> Tensor:
    """(side,side) of length 1: a hill in one half, a valley in the other (eq. 3); `turned`: the halves side by side."""
    upper = side // 2
    shape = torch.cat([_hill(upper, side), -_hill(side - upper, side)])
    shape = shape / shape.norm()
    return shape.T.contiguous() if turned else shape


def _hill(height: int, width: int) -> Tensor:
    """Sum of centered squares, the c-th weighted 1 / (c+1)^2, so highest in the middle; length 1."""
    far = torch.maximum(
        (torch.arange(height) - height // 2).abs().view(-1, 1), (torch.arange(width) - width // 2).abs()
    )
    reach = max(height, width) // 2
    weights = 1 / torch.arange(1, reach + 2).square()
    hill = weights.flip(0).cumsum(0).flip(0)[far]  # (height,width)
    return hill / _norm(hill, (0, 1))


def _corners(x: Tensor, sides: list[int], reach_edges: bool, rng: Streams) -> list[tuple[int, int]]:
    """Upper left corners, uniform over all that fit, but for the last row and column of them unless `reach_edges`."""
    u = rng.uniform_like(torch.empty(len(x), 2, dtype=torch.float64)).tolist()
    height, width = (n + reach_edges for n in x.shape[2:])
    return [(int(a * (height - side)), int(b * (width - side))) for (a, b), side in zip(u, sides, strict=True)]


def _signs(like: Tensor, rng: Streams) -> Tensor:
    return torch.where(rng.uniform_like(like) < 0.5, -1.0, 1.0).to(like)


def _norm(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.square().sum(dim=dims, keepdim=True).sqrt() + 1e-12  # a window may be empty
