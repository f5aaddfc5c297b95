"""The derivative of a defense: autograd against central differences in float64 under frozen noise."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dp.contracts.failure import RAISED, Failure
from dp.defense.defended import Defended
from dp.objectives import cross_entropy
from dp.rng import Streams

TOLERANCE = 1e-5  # of the relative error of a slope
STEPS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)  # the last for methods that clip inside: a pixel may lie 1e-7 from a bound
DIRECTIONS = 4
DECLARE = "if the method is so, write exceptions: {derivative: REASON} into its yaml"
CAUSES = {
    "flat": "the loss is constant near the images, so the likely cause is rounding with a straight-through derivative",
    "jump": "the loss jumps, so the likely cause is rounding or a threshold behind a straight-through derivative",
    "kink": "the slopes on the two sides differ, so the likely cause is a kink (median, max, sort, abs at ties)",
    "smooth": "the loss is smooth, so the likely cause is a part that is cut off (detach, no_grad, .data) or has a "
    "derivative of its own",
}
FINER = (1e-9,)  # where STEPS fail: for narrow bends such as that of the first step of Adam, which is nearly a sign


class Slopes(NamedTuple):
    """Slopes of the loss along a direction; `error`: of autograd's, relative, at the best step size."""

    autograd: float
    central: float
    error: float
    cause: str  # a key of CAUSES: what the loss looks like at this point


def loss_at(model: Defended, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
    """The summed cross-entropy of one sample of each image, always with the same noise."""
    return cross_entropy(model(x, Streams(ids, 3, "frozen")), y).sum()


def failures(model: Defended, x: Tensor, y: Tensor, ids: Tensor) -> list[Failure]:
    """At most one failure of the property `derivative`. `model` and x (B,C,H,W) in (0,1) are float64."""
    leaf = x.clone().requires_grad_()
    try:
        with torch.no_grad():
            first, again = (loss_at(model, x, y, ids).item() for _ in range(2))
        if first != again:
            what = f"the loss of the same images and streams is {first:.4g} and then {again:.4g}, so it has none"
            return [Failure("derivative", what, "the likely cause is torch.randn or dropout: draw noise from rng only")]
        (gradient,) = torch.autograd.grad(loss_at(model, leaf, y, ids), leaf)
    except RAISED as error:
        cause = "torch.no_grad(), detach(), .data or numpy stands between x and x_hat"
        return [Failure("derivative", f"autograd finds none ({error})", f"the likely cause: {cause}; {DECLARE}")]
    if gradient.abs().max() == 0:
        return [Failure("derivative", "autograd's is zero everywhere", f"the likely cause is rounding; {DECLARE}")]
    worst = worst_slopes(model, x, y, ids, gradient)
    if worst.error < TOLERANCE:
        return []
    amount = f"autograd's slope is {worst.autograd:.4g} and the central difference is {worst.central:.4g}"
    what = f"{amount}, a relative error of {worst.error:.2g} (need {TOLERANCE:.0e})"
    return [Failure("derivative", what, f"{CAUSES[worst.cause]}; {DECLARE}")]


def worst_slopes(model: Defended, x: Tensor, y: Tensor, ids: Tensor, gradient: Tensor) -> Slopes:
    """The worst over random directions of the best over step sizes of |central difference - g.v| / |g.v|."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(DIRECTIONS):
        v = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        v = v + 3 * gradient / gradient.norm()  # random, but not orthogonal to the gradient
        found.append(_slopes(model, x, y, ids, v, (gradient * v).sum().item()))
    return max(found, key=lambda slopes: slopes.error)


def _slopes(model: Defended, x: Tensor, y: Tensor, ids: Tensor, v: Tensor, slope: float) -> Slopes:
    ups, downs, best = [], [], math.inf
    with torch.no_grad():
        middle = loss_at(model, x, y, ids).item()
        for h in (*STEPS, *FINER):
            if h in FINER and abs(best - slope) < TOLERANCE * abs(slope):
                break
            ups.append((loss_at(model, x + h * v, y, ids).item() - middle) / h)
            downs.append((middle - loss_at(model, x - h * v, y, ids).item()) / h)
            best = min(best, (ups[-1] + downs[-1]) / 2, key=lambda one: abs(one - slope))
    return Slopes(slope, best, abs(best - slope) / abs(slope), _cause(ups, downs))


def _cause(ups: list[float], downs: list[float]) -> str:
    """What the one-sided slopes say. Of a jump they grow as the step falls; at a kink the two sides differ."""
    first, last = (max(abs(up), abs(down)) for up, down in ((ups[0], downs[0]), (ups[2], downs[2])))
    if last == 0:
        return "flat"
    if last > 10 * first:
        return "jump"
    return "kink" if abs(ups[2] - downs[2]) > 1e-3 * last else "smooth"
