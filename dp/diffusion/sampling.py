"""Steps of diffusion sampling in sigma coordinates, z = x0 + sigma * n, as pure functions of tensors and floats.

The variance-preserving state of the papers is this state scaled: x_t = z / sqrt(1 + sigma^2) and
abar = 1 / (1 + sigma^2).
"""

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

LEVELS = 1000
MOST_STEPS = 100 * LEVELS  # of a grid; far more would not fit into memory
CLAMPS = ("plain", "straight_through", "none")
Denoise = Callable[[Tensor, float], Tensor]  # (z (B,C,H,W), sigma) -> E[x0 | z] (B,C,H,W)
OnStep = Callable[[int, float, Tensor, Tensor], object]  # called with step i, sigma, z and x0 (B,C,H,W)


def vp_sigmas() -> Tensor:
    """Noise levels sigma_k = sqrt((1 - abar_k) / abar_k) of the linear schedule of Ho et al. 2020, (1000,) float64.

    Its betas rise linearly from 1e-4 to 2e-2.
    """
    betas = torch.linspace(1e-4, 2e-2, LEVELS, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, dim=0)
    return ((1 - abar) / abar).sqrt()


@functools.cache
def vp_log_sigmas(device: torch.device) -> Tensor:
    """The logarithms of `vp_sigmas`; a copy for each device, so that no call waits for one."""
    return vp_sigmas().log().to(device)


@functools.cache
def cosine_sigmas(levels: int, c_1: float, c_2: float, device: torch.device) -> Tensor:
    """Noise levels of the cosine schedule as EDM's iDDPMPrecond has it (Karras et al. 2022, Table 1), ascending from
    the clean image on, (levels + 1,) float64; a copy for each device.
    """
    cosine = [math.sin(math.pi / 2 * j / (levels * (c_2 + 1))) ** 2 for j in range(levels + 1)]
    u = [0.0]  # from the last index back to the first
    for j in range(levels, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(cosine[j - 1] / cosine[j], c_1) - 1))
    return torch.tensor(u, dtype=torch.float64, device=device)


def vp_sigma(t: float) -> float:
    """Noise level at time t in [0,1], which is the index k = 1000 t of `vp_sigmas`.

    Between indices log sigma is linear; above index 999 it is constant. Raises ValueError for a t outside [0,1].
    """
    if not 0 <= t <= 1:
        raise ValueError(f"need a time t in [0, 1], got t={t}")
    table = vp_sigmas().log()
    k = min(t * LEVELS, LEVELS - 1.0)
    below = min(int(k), LEVELS - 2)
    return math.exp(torch.lerp(table[below], table[below + 1], k - below).item())


def check_level(clock: Callable[[float], float], sigma: float) -> None:
    """Raises ValueError for a noise level that a rising clock does not reach."""
    last = clock(1.0)
    if not 0 < sigma <= last:
        raise ValueError(f"need a noise level above 0 and at most {last:.4g}, the clock's last, got {sigma:.4g}")


def time_of(clock: Callable[[float], float], sigma: float) -> float:
    """The time t in [0,1] at which a rising clock, such as `vp_sigma`, has the noise level sigma.

    Of a clock with steps it is the earliest time whose level is at least sigma. Raises ValueError for a sigma that the
    clock does not reach.
    """
    check_level(clock, sigma)
    low, high = 0.0, 1.0
    for _ in range(60):  # each halves the interval
        middle = (low + high) / 2
        low, high = (low, middle) if clock(middle) >= sigma else (middle, high)
    return high


def time_grid(t: float, steps: int | Sequence[float]) -> list[float]:
    """Times from t down to 0, where the last one stands for the clean image (sigma = 0, not sigma(0)).

    `t`: in (0,1]. `steps`: the number of equal steps, or the times themselves, falling from t, without the final 0.
    Raises ValueError for anything else.
    """
    if not 0 < t <= 1:
        raise ValueError(f"need 0 < t <= 1, got t={t}")
    if isinstance(steps, int):
        if not 1 <= steps <= MOST_STEPS:
            raise ValueError(f"need 1 <= steps <= {MOST_STEPS}, got steps={steps}")
        return [round(t * (1 - i / steps), 12) for i in range(steps + 1)]
    times = [*steps, 0.0]
    if times[0] != t or not all(a > b for a, b in pairwise(times)):
        raise ValueError(f"need steps as a count or as falling times from t={t} to above 0, got steps={list(steps)}")
    return times


def noise_levels(clock: Callable[[float], float], t: float, end: float, steps: int) -> list[float]:
    """The noise levels of `steps` times at equal distances from t down to `end`, and 0 for the clean image after them.

    `clock`: noise level of a time, a denoiser's `sigma`. A chain over the indices K - 1, ..., 0 of the 1000-level
    schedule has t = (K - 1) / 1000, end = 0 and steps = K.
    Where there is no noise at `end`, as at time 0 of a clock in continuous time, that time is the clean image itself,
    and the chain is one level shorter.
    Raises ValueError unless 0 <= end < t <= 1 and steps >= 2.
    """
    if not (0 <= end < t <= 1 and 2 <= steps <= MOST_STEPS):
        raise ValueError(f"need 0 <= end < t <= 1 and 2 <= steps <= {MOST_STEPS}, got {end=}, {t=}, {steps=}")
    sigmas = [clock(round(t - i * (t - end) / (steps - 1), 12)) for i in range(steps)]
    return [*(sigma for sigma in sigmas if sigma > 0), 0.0]


def karras_levels(low: float, high: float, count: int, rho: float) -> Tensor:
    """`count` noise levels from `high` down to `low`, equally spaced in sigma^(1/rho) (Karras et al. 2022, Eq. 5),
    (count,) float64. Raises ValueError unless 0 < low < high and count >= 2.
    """
    if not (0 < low < high and count >= 2):
        raise ValueError(f"need 0 < low < high and count >= 2, got {low=}, {high=}, {count=}")
    ends = high ** (1 / rho), low ** (1 / rho)
    return torch.linspace(*ends, count, dtype=torch.float64) ** rho


def renoise(z: Tensor, sigma: float, sigma_next: float, n: Tensor) -> Tensor:
    """Add noise to z (B,C,H,W) until its level sigma has become sigma_next >= sigma.

    From sigma = 0 this is the forward process q(x_t | x_0). `n`: unit Gaussian noise of z's shape.
    """
    assert sigma_next >= sigma, f"renoise goes up, got sigma={sigma}, sigma_next={sigma_next}"
    return z + math.sqrt(sigma_next**2 - sigma**2) * n


def ancestral_step(z: Tensor, x0: Tensor, sigma: float, sigma_next: float, n: Tensor | None, eta: float) -> Tensor:
    """One step from sigma down to sigma_next, given the posterior mean x0 = E[x0 | z], all (B,C,H,W).

    `eta`: 1 for the DDPM posterior (Ho et al. 2020, Eq. 7), 0 for DDIM (Song et al. 2021, Eq. 12). `n`: unit Gaussian
    noise of z's shape, which may be None where eta = 0. With sigma_next = 0 the result is x0.
    """
    assert 0 <= sigma_next <= sigma, f"a step goes down, got sigma={sigma}, sigma_next={sigma_next}"
    up = eta * sigma_next * math.sqrt(max(0.0, 1 - (sigma_next / sigma) ** 2))
    down = math.sqrt(max(0.0, sigma_next**2 - up**2))
    z_next = x0 + (down / sigma) * (z - x0)
    if up == 0:
        return z_next
    assert n is not None, f"a step with eta={eta} needs noise, got n=None"
    return z_next + up * n


def heun_step(z: Tensor, x0: Tensor, denoiser: Denoise, sigma: float, sigma_next: float) -> Tensor:
    """One step of Heun's method on the probability flow dz / dsigma = (z - x0) / sigma (Karras et al. 2022, Alg. 1).

    `z`, `x0`: (B,C,H,W), with x0 = denoiser(z, sigma). The denoiser is called once more, at sigma_next, unless
    sigma_next is 0; the step is then DDIM's.
    """
    assert 0 <= sigma_next <= sigma, f"a step goes down, got sigma={sigma}, sigma_next={sigma_next}"
    slope = (z - x0) / sigma
    z_next = z + (sigma_next - sigma) * slope
    if sigma_next == 0:
        return z_next
    slope_next = (z_next - denoiser(z_next, sigma_next)) / sigma_next
    return z + (sigma_next - sigma) * 0.5 * (slope + slope_next)


def beside(z: Tensor, sigma: float | Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A noise level as (1,1,1,1), or levels as (B,1,1,1), on the device of z (B,C,H,W), by default in its precision.

    A number is written there by the device itself: a copy from the host would wait for it.
    """
    if isinstance(sigma, Tensor):
        return sigma.to(device=z.device, dtype=dtype or z.dtype).reshape(-1, 1, 1, 1)
    return torch.full((1, 1, 1, 1), sigma, dtype=dtype or z.dtype, device=z.device)


def to_pm1(x: Tensor) -> Tensor:
    """Images in [0,1] as images in [-1,1], of the same shape."""
    return 2 * x - 1


def clip_pm1(x0: Tensor) -> Tensor:
    """Images clipped to [-1,1]. As in `to_01`, the gradient is 1 at the bounds themselves and 0 beyond them."""
    return torch.where((x0 >= -1) & (x0 <= 1), x0, x0.detach().clamp(-1.0, 1.0))


def clip_01(x: Tensor) -> Tensor:
    """Images clipped to [0,1], with the gradient of `clip_pm1`."""
    return torch.where((x >= 0) & (x <= 1), x, x.detach().clamp(0.0, 1.0))


def with_identity(x_hat: Tensor, x: Tensor) -> Tensor:
    """x_hat with the identity in place of its derivative in x (BPDA, Athalye et al. 2018). It has no graph of its own;
    its values stay, since exactly zero is added.
    """
    return x_hat + (x - x.detach())


def to_01(z: Tensor, clamp: str = "plain") -> Tensor:
    """Images in [-1,1] as images in [0,1], of the same shape. `clamp` says what happens to values beyond the bounds.

    `plain`: they are clamped, and their gradient is 0. `straight_through`: they are clamped, and their gradient is 1,
    which is an approximation. `none`: they stay, so the image may leave [0,1]; right for methods whose released code
    hands the image to the classifier unclamped.
    At the bounds themselves the gradient is always 1. torch.clamp is not used for it, because its gradient there has
    changed between versions (deviation 27: clamping and its gradient at the bounds).
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
