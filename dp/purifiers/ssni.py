"""SSNI (Sun et al. 2025, arXiv 2506.06027): DiffPure's chain with a noise time for each image, by its score norm.

The formulas are those of the code of one of the authors (JiachengZ01/SSNI): an image far from the data has a large
score, and gets more noise. We have not read the paper.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.guided import guided_step
from dp.diffusion.sampling import LEVELS, OnStep, renoise, to_01, to_pm1
from dp.rng import Streams

REWEIGHTS = ("linear", "sigmoid")
DERIVATIVES = ("exact", "constant_time")
Clock = Callable[[Tensor], Tensor]  # times (B,) -> noise levels (B,), both float64


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    t_min: float,
    t_max: float,
    reweight: str,
    center: float | None,
    scale: float | None,
    score_t: float,
    score_steps: int,
    steps: int,
    eta: float,
    clamp: str = "plain",
    derivative: str = "exact",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by sample-specific noise and return x_hat in [0,1]. NFE = score_steps + steps.

    An image's noise time is t_min + (t_max - t_min) w, with 0 <= t_min <= t_max <= 1 and a weight w in [0,1] of its
    score norm e, see `score_norm`. `steps` equal steps lead from there to the clean image; as in DiffPure's code, the
    noise of time t is that of index 1000 t - 1, and at least that of the first index.
    `reweight`: `sigmoid` has w = 1 / (1 + exp(-(e - center) / scale)). `linear` rises from 0 to 1 around `center`, over
    a range of length `scale`, and is constant beyond.
    `center`, `scale`: of the score norms of clean training images, scale > 0. They belong to a denoiser, so there is no
    default: measure them with `score_norm`.
    `score_t`, `score_steps`: see `score_norm`. `eta`: 1 for DDPM's ancestral steps, 0 for DDIM's.
    `clamp`: the last step's clamp to [0,1], see `to_01`. `derivative`: `exact`, or `constant_time` for an attacker who
    takes each image's time as a constant. The values are the same.
    `on_step(i, sigma, z, x0)` is called after every step, with the noise level of an image of time t_max as sigma.
    Raises ValueError for values outside these ranges.
    """
    _check(t_min, t_max, reweight, eta, steps, derivative)
    with torch.set_grad_enabled(torch.is_grad_enabled() and derivative == "exact"):
        norm = score_norm(x, denoiser, rng, score_t=score_t, score_steps=score_steps)
        t = t_min + (t_max - t_min) * weight(norm.double(), reweight, center, scale)
    clock, z = _clock(denoiser, t_max, x.device), to_pm1(x)
    z = z + _beside(z, clock(t)) * rng.randn_like(z)
    for i in range(steps):
        n = rng.randn_like(z) if eta > 0 and i + 1 < steps else z.new_zeros(())
        step = functools.partial(_step, denoiser=denoiser, clock=clock, left=1 - i / steps, steps=steps, eta=eta)
        before = z
        z, x0 = guided_step(denoiser, step, z, t, n)
        if on_step is not None:
            on_step(i, clock(torch.tensor(t_max * (1 - i / steps), dtype=t.dtype)).item(), before, x0)
    return to_01(z, clamp)


def score_norm(x: Tensor, denoiser: Denoiser, rng: Streams, *, score_t: float, score_steps: int) -> Tensor:
    """The norm (B,) of each image's expected perturbation score, for x (B,C,H,W) in [0,1]. NFE = `score_steps`.

    It is the Euclidean norm of the mean, over times k / score_steps x score_t, k = 1, ..., score_steps, of the score
    of the variance-preserving state, with fresh noise at each time. Raises ValueError unless 0 < score_t <= 1 and
    score_steps >= 1.
    """
    if not (0 < score_t <= 1 and score_steps >= 1):
        raise ValueError(f"need 0 < score_t <= 1 and score_steps >= 1, got {score_t=}, {score_steps=}")
    clean, total = to_pm1(x), torch.zeros_like(x)
    for k in range(1, score_steps + 1):
        sigma = denoiser.sigma(round(score_t * k / score_steps, 12))
        z = renoise(clean, 0.0, sigma, rng.randn_like(clean))
        total = total + (denoiser(z, sigma) - z) * (math.sqrt(1 + sigma**2) / sigma**2)
    return (total / score_steps).flatten(1).square().sum(dim=1).sqrt()


def weight(norm: Tensor, reweight: str, center: float | None, scale: float | None) -> Tensor:
    """The weights (B,) in [0,1] of score norms (B,), see `purify`. Raises ValueError without a center and a scale."""
    if center is None or scale is None or not scale > 0:
        raise ValueError(
            f"need center and scale > 0 of clean images' score norms, got center={center}, scale={scale}: measure them "
            "with dp.purifiers.ssni.score_norm"
        )
    height = (norm - center) / scale
    if reweight == "sigmoid":
        return torch.sigmoid(height)
    # Differs (deviation 87: time of an image in SSNI): the range does not depend on the batch.
    return torch.where(height.abs() < 0.5, height + 0.5, (height > 0).to(height.dtype))


def _clock(denoiser: Denoiser, t_max: float, device: torch.device) -> Clock:
    """The noise level of index 1000 t - 1 as a differentiable function; between indices its logarithm is linear.

    At a whole index it is the denoiser's own level. A clock without noise at its start begins at index 1. Times are on
    the CPU or on `device`.
    """
    first = 0 if denoiser.sigma(0.0) > 0 else 1
    last = min(max(math.ceil(t_max * LEVELS), first + 1), LEVELS - 1)
    levels = torch.tensor([denoiser.sigma(k / LEVELS) for k in range(first, last + 1)], dtype=torch.float64)
    tables = {levels.device: levels, device: levels.to(device)}

    def clock(t: Tensor) -> Tensor:
        index = LEVELS * t - 1 - first  # Differs (deviation 87: time of an image in SSNI): it is not rounded
        index = torch.where(index > 0, index, torch.zeros_like(index))
        below = index.detach().long().clamp(max=len(levels) - 2)
        table = tables[t.device]
        return table[below] * (table[below + 1] / table[below]) ** (index - below)

    return clock


def _step(
    z: Tensor, t: Tensor, n: Tensor, *, denoiser: Denoiser, clock: Clock, left: float, steps: int, eta: float
) -> tuple[Tensor, Tensor]:
    """A step from time left x t down to (left - 1 / steps) x t, and the posterior mean of z: `ancestral_step` with a
    noise level for each image. In the last step both are the posterior mean. `t`: (B,), `n`: noise or 0.
    """
    sigma = clock(left * t)
    x0 = denoiser(z, _beside(z, sigma))
    if left < 1.5 / steps:
        return x0, x0
    sigma_next = clock((left - 1 / steps) * t)
    room = 1 - (sigma_next / sigma) ** 2  # 0 where both are the first index; the root has no derivative there
    up = torch.where(room > 0, eta * sigma_next * torch.where(room > 0, room, torch.ones_like(room)).sqrt(), 0.0)
    down = (sigma_next**2 - up**2).sqrt()
    return x0 + _beside(z, down / sigma) * (z - x0) + _beside(z, up) * n, x0


def _beside(z: Tensor, values: Tensor) -> Tensor:
    """One value for each image, (B,) as (B,1,1,1) in z's precision."""
    return values.to(z.dtype).view(-1, 1, 1, 1)


def _check(t_min: float, t_max: float, reweight: str, eta: float, steps: int, derivative: str) -> None:
    if not 0 <= t_min <= t_max <= 1 or t_max == 0:
        raise ValueError(f"need 0 <= t_min <= t_max <= 1 and t_max > 0, got t_min={t_min}, t_max={t_max}")
    if reweight not in REWEIGHTS:
        raise ValueError(f"need reweight among {', '.join(REWEIGHTS)}, got reweight={reweight!r}")
    if not (0 <= eta <= 1 and steps >= 1):
        raise ValueError(f"need 0 <= eta <= 1 and steps >= 1, got eta={eta}, steps={steps}")
    if derivative not in DERIVATIVES:
        raise ValueError(f"need derivative among {', '.join(DERIVATIVES)}, got derivative={derivative!r}")
