"""Steps of diffusion sampling in sigma coordinates, z = x0 + sigma * n: pure functions of tensors and floats.

The variance-preserving state of the papers is the same one scaled, x_t = z / sqrt(1 + sigma^2), with abar = 1 / (1 +
sigma^2).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

LEVELS = 1000
CLAMPS = ("plain", "straight_through", "none")


def vp_sigmas() -> Tensor:
    """(1000,) float64: sigma_k = sqrt((1 - abar_k) / abar_k) of the linear schedule, betas 1e-4 ... 2e-2 (methods.md
    section 0).
    """
    betas = torch.linspace(1e-4, 2e-2, LEVELS, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, dim=0)
    return ((1 - abar) / abar).sqrt()


def vp_sigma(t: float) -> float:
    """Noise level at time t in [0,1], index k = 1000 t of `vp_sigmas`; between indices linear in log sigma, above 999
    constant.
    """
    if not 0 <= t <= 1:
        raise ValueError(f"need a time t in [0, 1], got t={t}")
    table = vp_sigmas().log()
    k = min(t * LEVELS, LEVELS - 1.0)
    below = min(int(k), LEVELS - 2)
    return math.exp(torch.lerp(table[below], table[below + 1], k - below).item())


def time_grid(t: float, steps: int | Sequence[float]) -> list[float]:
    """Times from t down to 0; the last one stands for the clean image (sigma 0, not sigma(0)).

    `steps`: how many equal steps, or the times themselves: falling, the first one t, the final 0 left out.
    """
    if not 0 < t <= 1:
        raise ValueError(f"need 0 < t <= 1, got t={t}")
    if isinstance(steps, int):
        if steps < 1:
            raise ValueError(f"need steps >= 1, got steps={steps}")
        return [round(t * (1 - i / steps), 12) for i in range(steps + 1)]
    times = [*steps, 0.0]
    if times[0] != t or not all(a > b for a, b in pairwise(times)):
        raise ValueError(f"need steps as a count or as falling times from t={t} to above 0, got steps={list(steps)}")
    return times


def renoise(z: Tensor, sigma: float, sigma_next: float, n: Tensor) -> Tensor:
    """Diffuse on from sigma to a higher sigma_next; from sigma = 0 this is the forward jump N_k(x). `n`: unit Gaussian
    like z.
    """
    assert sigma_next >= sigma, f"renoise goes up, got sigma={sigma}, sigma_next={sigma_next}"
    return z + math.sqrt(sigma_next**2 - sigma**2) * n


def ancestral_step(z: Tensor, x0: Tensor, sigma: float, sigma_next: float, n: Tensor | None, eta: float) -> Tensor:
    """From sigma down to sigma_next given the posterior mean x0: the DDPM posterior at eta = 1, DDIM at eta = 0 (`n`
    unused, may be None).

    D_eta of methods.md section 0; sigma_next = 0 returns x0.
    """
    assert 0 <= sigma_next <= sigma, f"a step goes down, got sigma={sigma}, sigma_next={sigma_next}"
    up = eta * sigma_next * math.sqrt(max(0.0, 1 - (sigma_next / sigma) ** 2))
    down = math.sqrt(max(0.0, sigma_next**2 - up**2))
    z_next = x0 + (down / sigma) * (z - x0)
    if up == 0:
        return z_next
    assert n is not None, f"a step with eta={eta} needs noise, got n=None"
    return z_next + up * n


def heun_step(z: Tensor, x0: Tensor, denoiser: Callable, sigma: float, sigma_next: float) -> Tensor:
    """One step of Heun's method on the probability flow dz / dsigma = (z - x0) / sigma (Karras et al. 2022, Alg. 1).

    `x0`: denoiser(z, sigma), which the caller has; asks `denoiser(z, sigma)` once more, at sigma_next, unless that is
    0, where it is the DDIM step.
    """
    assert 0 <= sigma_next <= sigma, f"a step goes down, got sigma={sigma}, sigma_next={sigma_next}"
    slope = (z - x0) / sigma
    z_next = z + (sigma_next - sigma) * slope
    if sigma_next == 0:
        return z_next
    slope_next = (z_next - denoiser(z_next, sigma_next)) / sigma_next
    return z + (sigma_next - sigma) * 0.5 * (slope + slope_next)


def to_pm1(x: Tensor) -> Tensor:
    """[0,1] -> [-1,1]."""
    return 2 * x - 1


def to_01(z: Tensor, clamp: str = "plain") -> Tensor:
    """[-1,1] -> [0,1]. `clamp` says what happens to values beyond the bounds.

    `plain`: they are clamped, and their gradient is 0. `straight_through`: they are clamped, and their gradient is 1,
    which is an approximation. `none`: they stay, so the image may leave [0,1]; right for methods whose released code
    hands the image to the classifier unclamped.
    At the bounds themselves the gradient is always 1. torch.clamp is not used for it, because its gradient there has
    changed between versions (deviation 27: the clamp's gradient at the bounds).
    Raises ValueError for another `clamp`.
    """
    if clamp not in CLAMPS:
        raise ValueError(f"need clamp among {', '.join(CLAMPS)}, got clamp={clamp!r}")
    x = (z + 1) / 2
    if clamp == "none":
        return x
    bounded = x.detach().clamp(0.0, 1.0)
    if clamp == "straight_through":
        return x + (bounded - x.detach())
    return torch.where((x >= 0) & (x <= 1), x, bounded)
