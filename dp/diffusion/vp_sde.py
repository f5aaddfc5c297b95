"""The variance-preserving SDE (Song et al. 2021, Eqs. 11 and 32) in continuous time, and its reversal."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from dp.diffusion.sampling import LEVELS, Denoise, OnStep, renoise, to_pm1, vp_sigma


@dataclass(frozen=True)
class VPSDE:
    """dx = -beta x / 2 dt + sqrt(beta) dw with beta(t) = beta_min + t (beta_max - beta_min), t in [0,1].

    Its states are the papers' own: x = sqrt(abar) x0 + sqrt(1 - abar) n = z / sqrt(1 + sigma^2).
    Raises ValueError unless 0 <= beta_min <= beta_max and beta_max > 0.
    """

    beta_min: float
    beta_max: float

    def __post_init__(self):
        if not (0 <= self.beta_min <= self.beta_max and self.beta_max > 0):
            given = f"beta_min={self.beta_min}, beta_max={self.beta_max}"
            raise ValueError(f"need 0 <= beta_min <= beta_max and beta_max > 0, got {given}")

    def beta(self, t: float) -> float:
        """Noise rate at time t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def log_abar(self, t: float) -> float:
        """ln abar(t), which is minus the integral of beta from 0 to t."""
        return -(self.beta_max - self.beta_min) * t**2 / 2 - self.beta_min * t

    def sigma(self, t: float) -> float:
        """Noise level sqrt(1 / abar(t) - 1) over x0."""
        return math.sqrt(math.expm1(-self.log_abar(t)))

    def start(self, x: Tensor, t: float, n: Tensor) -> Tensor:
        """The state at time t of images x (B,C,H,W) in [0,1]. `n`: unit Gaussian noise of x's shape.

        As in DiffPure's code, abar is that of index 1000 t - 1 of the 1000-level schedule, which is half a step of 1e-3
        from abar(t).
        """
        sigma = vp_sigma(t - 1 / LEVELS)
        return renoise(to_pm1(x), 0.0, sigma, n) / math.sqrt(1 + sigma**2)

    def to_z(self, x: Tensor, t: float) -> Tensor:
        """The state x at time t in sigma coordinates, z = x / sqrt(abar)."""
        return x * math.exp(-self.log_abar(t) / 2)

    def from_z(self, z: Tensor, t: float) -> Tensor:
        """The inverse of `to_z`."""
        return z * math.exp(self.log_abar(t) / 2)

    def rate(self, x: Tensor, x0: Tensor, t: float, share: float) -> Tensor:
        """Change of x per unit of falling time: beta (x / 2 + share * score), all (B,C,H,W).

        The score is (sqrt(abar) x0 - x) / (1 - abar), with x0 = E[x0 | x]. `share`: 1 for the reverse SDE, which also
        adds noise of variance beta dt, 1/2 for the probability flow, which adds none.
        """
        score = (math.exp(self.log_abar(t) / 2) * x0 - x) / -math.expm1(self.log_abar(t))
        return self.beta(t) * (0.5 * x + share * score)

    def reverse_step(self, x: Tensor, x0: Tensor, n: Tensor, t: float, t_next: float) -> Tensor:
        """Euler-Maruyama on the reverse SDE from t down to t_next, given x0 = E[x0 | x] and unit noise n (B,C,H,W)."""
        size, drift = t - t_next, self.rate(x, x0, t, share=1.0)
        return x + size * drift + math.sqrt(self.beta(t) * size) * n


def walk(
    sde: VPSDE,
    state: Tensor,
    denoiser: Denoise,
    times: Sequence[float],
    step: Callable[[Tensor, Tensor, Tensor, float, float], Tensor],
    on_step: OnStep | None = None,
) -> Tensor:
    """Take the state (B,C,H,W) from the first to the last of the falling `times` and return it.

    The denoiser is called once per step. `step(state, z, x0, time, time_next)` returns the next state.
    `on_step(i, sigma, z, x0)` is called after every call of the denoiser.
    """
    for i, (time, time_next) in enumerate(pairwise(times)):
        z, sigma = sde.to_z(state, time), sde.sigma(time)
        x0 = denoiser(z, sigma)
        if on_step is not None:
            on_step(i, sigma, z, x0)
        state = step(state, z, x0, time, time_next)
    return state


def fixed_times(t: float, end: float, dt: float) -> list[float]:
    """Times from t to `end`, falling or rising, in steps of dt; the last step takes the rest.

    Raises ValueError unless dt > 0 and t differs from `end`.
    """
    if not dt > 0 or t == end:
        raise ValueError(f"need dt > 0 and different times, got dt={dt}, t={t}, end={end}")
    sign, steps = (1 if end > t else -1), math.ceil(abs(end - t) / dt - 1e-9)
    return [round(t + sign * k * dt, 12) for k in range(steps)] + [end]


def check_times(t: float, end: float, dt: float) -> None:
    """Raise ValueError unless 0 < end < t, 0.001 < t <= 1 and dt > 0."""
    if not (1 / LEVELS < t <= 1 and 0 < end < t and dt > 0):
        raise ValueError(f"need 0 < end < t, 0.001 < t <= 1 and dt > 0, got end={end}, t={t}, dt={dt}")
