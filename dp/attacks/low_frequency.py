"""LF, the low-frequency attack of DiffBreak (Kassis et al. 2024, arXiv 2411.16598): a small change, then a chain of
smoothing filters learned at every pixel, within a perceptual distance of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dp.adam import Moments, adam, moments
from dp.attacks.base import Attack, Stream
from dp.attacks.selection import strongest
from dp.attacks.state import where
from dp.defense.interface import Defense
from dp.objectives import margin
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel
from dp.threat_models.perceptual import PerceptualModel
from dp.transfer import sent

NARROW = 0.2  # std in pixels of the Gaussians that the filters begin as: the identity, but for FAINT ...
FAINT = 1e-5  # ... which keeps the logarithms of their weights finite
INSIDE = 0.999999  # keeps arctanh finite at the bounds of the box


class State(NamedTuple):
    """Where the low-frequency attack stands between two iterations."""

    x_adv: Tensor  # (B,C,H,W) what would be returned now
    x: Tensor  # (B,C,H,W) the iterate
    parameters: tuple[Tensor, ...]  # the filters' logits (B,kh//2+1,kw//2+1,H,W) in order, then the change (B,C,H,W)
    moments: tuple[Moments, ...]  # of each
    best: Tensor  # (B,) mean margin of x_adv over its samples
    i: Tensor  # (B,) int64 on the CPU: steps done


@dataclass(frozen=True)
class LowFrequency(Attack):
    """`iterations` Adam steps on the mean margin over `eot` samples less `penalty` times the perceptual distance where
    that exceeds eps.

    `kernels`: heights and widths, odd, of the filters; each pixel's weights are even in both directions, and fade where
    the clean image differs from the pixel, like exp(-d^2 / 2 `sigma`^2) in color. `rate_filters`, `rate_change`: step
    sizes for the filters' logits and for the change, made in arctanh space before the filters. `clip`: largest norm of
    an image's gradient in each. In the end `confirm` fresh samples choose, by mean margin, between the iterate of the
    largest margin within eps and the last one, pulled back to eps. Until one is within eps a random low-frequency
    change stands in, so that the returned image is never clean.
    """

    iterations: int
    eot: int
    kernels: Sequence[Sequence[int]]
    sigma: float = 0.05
    rate_filters: float = 0.05
    rate_change: float = 0.008
    penalty: float = 1e8
    clip: float = 1.0
    confirm: int = 20

    def __post_init__(self):
        if min(self.iterations, self.eot, self.confirm) < 1:
            raise ValueError(f"need iterations, eot, confirm >= 1, got {self.iterations}, {self.eot}, {self.confirm}")
        if not all(isinstance(k, Sequence) and len(k) == 2 and all(map(_is_odd, k)) for k in self.kernels):
            raise ValueError(f"need kernels as pairs of odd numbers, such as [[5, 5]], got {self.kernels}")
        if min(self.sigma, self.rate_filters, self.rate_change, self.penalty, self.clip) <= 0:
            given = f"{self.sigma}, {self.rate_filters}, {self.rate_change}, {self.penalty}, {self.clip}"
            raise ValueError(f"need sigma, rate_filters, rate_change, penalty, clip > 0, got {given}")

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
        return ("perceptual",)

    @property
    def phase_ends(self) -> tuple[int, ...]:
        """Before and after the last step, which ends with the choice."""
        return tuple(k for k in (self.steps - 1, self.steps) if k)

    def current(self, state: State) -> State:
        return state._replace(x_adv=state.x)

    def says(self, through: str) -> str:
        what = f"LF, {self.steps} steps along the mean gradient of {self.eot} samples, through {through}"
        return f"{what}; {self.confirm} fresh samples choose what comes back"

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        if any(k // 2 >= side for kernel in self.kernels for k, side in zip(kernel, x.shape[2:], strict=True)):
            size = "x".join(map(str, x.shape[2:]))
            raise ValueError(f"need kernels less than twice as long as images of {size}, got {self.kernels}")
        logits = [first_logits(kernel, x) for kernel in self.kernels]
        parameters = (*logits, torch.zeros_like(x))
        return State(
            x_adv=threat.noise(x, rng),
            x=self.image(x, parameters),
            parameters=parameters,
            moments=tuple(moments(p) for p in parameters),
            best=x.new_full((len(x),), -torch.inf),
            i=torch.zeros(len(x), dtype=torch.long),
        )

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        assert isinstance(threat, PerceptualModel), "LF needs a perceptual distance"
        parameters = tuple(p.detach().requires_grad_() for p in state.parameters)
        at = self.image(x, parameters)
        value, grad = model.loss_gradient(at.detach(), y, rng.draw(Stream.QUERY), self.eot, margin)
        distance = threat.between(at, x)  # (B,)
        far = distance.detach() > threat.eps
        gain = (grad * at).sum() - self.penalty * torch.where(far, distance, 0.0).sum()
        slopes = torch.autograd.grad(gain, parameters)
        wins = (value > state.best) & ~far & _moves(state.parameters)  # the first iterate is all but clean
        x_adv, best = where(wins, (at.detach(), value), (state.x_adv, state.best))
        rates = [*[self.rate_filters] * len(self.kernels), self.rate_change]
        moved = [
            self._moved(p, m, slope, state.i, rate)
            for p, m, slope, rate in zip(state.parameters, state.moments, slopes, rates, strict=True)
        ]
        parameters, after = (tuple(part) for part in zip(*moved, strict=True))
        onwards, last = self.image(x, parameters), state.i + 1 == self.iterations
        if bool(last.any()):
            points = [x_adv, threat.project(onwards, x)]
            chosen = strongest(model, points, y, rng.draw(Stream.SELECTION), self.confirm, among=last)
            x_adv = where(sent(last, x.device) & _moves(parameters), chosen, x_adv)
        return State(x_adv=x_adv, x=onwards, parameters=parameters, moments=after, best=best, i=state.i + 1)

    def image(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """What the parameters make of the clean images x, (B,C,H,W) in [0,1]."""
        logits, change = parameters[:-1], parameters[-1]
        out = (1 + torch.tanh(torch.arctanh((2 * x - 1) * INSIDE) + change)) / 2
        for kernel, weights in zip(self.kernels, logits, strict=True):
            out = smooth(out, weights, closeness(x, kernel, self.sigma))
        return torch.empty_like(x).copy_(out)  # in the memory format of x

    def _moved(
        self, parameter: Tensor, before: Moments, slope: Tensor, i: Tensor, rate: float
    ) -> tuple[Tensor, Moments]:
        """The parameter and its moments after one step; the slope is cut image by image."""
        length = slope.flatten(1).norm(dim=1).view(-1, *[1] * (slope.dim() - 1))
        add, after = adam(before, slope * (self.clip / length.clamp(min=self.clip)), i, rate)
        return parameter + add, after


def _is_odd(length: object) -> bool:
    return isinstance(length, int) and length > 0 and length % 2 == 1


def _moves(parameters: Sequence[Tensor]) -> Tensor:
    """(B,) bool: whether there is any change yet."""
    return (parameters[-1] != 0).flatten(1).any(dim=1)


def first_logits(kernel: Sequence[int], x: Tensor) -> Tensor:
    """Logits of a filter that all but copies, (B,kh//2+1,kw//2+1,H,W): a quarter of its weights, the rest mirrored."""
    row, column = (torch.arange(k // 2 + 1, dtype=x.dtype, device=x.device) - k // 2 for k in kernel)
    squares = row.square().view(-1, 1) + column.square()
    weights = torch.softmax((-squares / (2 * NARROW**2)).flatten(), dim=0).view_as(squares)
    logits = weights.clamp(FAINT, INSIDE).log().view(1, *squares.shape, 1, 1)
    return logits.repeat(len(x), 1, 1, *x.shape[2:])


def patches(x: Tensor, kernel: Sequence[int]) -> Tensor:
    """The neighborhood of every pixel, (B,C,kh*kw,H,W); beyond the edge the image is mirrored."""
    padded = F.pad(x, (kernel[1] // 2, kernel[1] // 2, kernel[0] // 2, kernel[0] // 2), mode="reflect")
    return F.unfold(padded, tuple(kernel)).view(len(x), x.shape[1], kernel[0] * kernel[1], *x.shape[2:])


def closeness(x: Tensor, kernel: Sequence[int], sigma: float) -> Tensor:
    """(B,kh*kw,H,W): exp(-d^2 / 2 sigma^2), d the neighbor's difference in color, summed over channels."""
    difference = (patches(x, kernel) - x.unsqueeze(2)).abs().sum(dim=1)
    return (-0.5 * (difference / sigma).square()).exp()


def smooth(x: Tensor, logits: Tensor, close: Tensor) -> Tensor:
    """Every pixel's weighted mean of its neighborhood, (B,C,H,W)."""
    whole = torch.cat([logits, logits[:, :-1].flip(1)], dim=1)
    whole = torch.cat([whole, whole[:, :, :-1].flip(2)], dim=2)  # (B,kh,kw,H,W)
    weights = torch.softmax(whole.flatten(1, 2), dim=1) * close  # the center is as close as can be: the sum is not zero
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights.unsqueeze(1) * patches(x, tuple(whole.shape[1:3]))).sum(dim=2)
