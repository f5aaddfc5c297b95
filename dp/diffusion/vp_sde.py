"""The continuous variance-preserving diffusion (Song et al. 2021, Eqs. 11 and 32) in its own time, and its reversal."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from dp.diffusion.sampling import LEVELS, renoise, to_pm1, vp_sigma


@dataclass(frozen=True)
class VPSDE:
    """dx = -beta x / 2 dt + sqrt(beta) dw with beta(t) = beta_min + t (beta_max - beta_min), t in [0,1].

    States x are the papers' own, x = sqrt(abar) x0 + sqrt(1 - abar) n = z / sqrt(1 + sigma^2).
    """

    beta_min: float
    beta_max: float

    def beta(self, t: float) -> float:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def log_abar(self, t: float) -> float:
        """ln abar(t) <= 0: minus the integral of beta from 0 to t."""
        return -(self.beta_max - self.beta_min) * t**2 / 2 - self.beta_min * t

    def sigma(self, t: float) -> float:
        """sqrt(1 / abar - 1)."""
        return math.sqrt(math.expm1(-self.log_abar(t)))

    def start(self, x: Tensor, t: float, n: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> state at t, with the abar of the 1000-level schedule's index 1000 t - 1, as DiffPure
        starts (methods.md section 1.2): half a step of 1e-3 from abar(t). `n`: unit Gaussian like x.
        """
        sigma = vp_sigma(t - 1 / LEVELS)
        return renoise(to_pm1(x), 0.0, sigma, n) / math.sqrt(1 + sigma**2)

    def to_z(self, x: Tensor, t: float) -> Tensor:
        """The state in sigma coordinates."""
        return x * math.exp(-self.log_abar(t) / 2)

    def from_z(self, z: Tensor, t: float) -> Tensor:
        """The other way."""
        return z * math.exp(self.log_abar(t) / 2)

    def rate(self, x: Tensor, x0: Tensor, t: float, share: float) -> Tensor:
        """Change of x per unit of *falling* time, beta (x / 2 + share * score), with x0 = E[x0 | x] and
        score = (sqrt(abar) x0 - x) / (1 - abar).

        `share`: 1 for the reverse SDE, which adds noise of variance beta dt; 1/2 for the probability flow, which adds
        none.
        """
        score = (math.exp(self.log_abar(t) / 2) * x0 - x) / -math.expm1(self.log_abar(t))
        return self.beta(t) * (0.5 * x + share * score)


def walk(
    sde: VPSDE,
    state: Tensor,
    denoiser: Callable,
    times: Sequence[float],
    step: Callable[[Tensor, Tensor, Tensor, float, float], Tensor],
    on_step: Callable | None = None,
) -> Tensor:
    """The state (B,C,H,W) at the last of the falling `times`, from the one at the first, with one call of the denoiser
    at each: `step(state, z, x0, time, time_next)` is the next state, `on_step(i, sigma, z, x0)` looks on.
    """
    for i, (time, time_next) in enumerate(pairwise(times)):
        z, sigma = sde.to_z(state, time), sde.sigma(time)
        x0 = denoiser(z, sigma)
        if on_step is not None:
            on_step(i, sigma, z, x0)
        state = step(state, z, x0, time, time_next)
    return state


def fixed_times(t: float, end: float, dt: float) -> list[float]:
    """Times from t to `end`, falling or rising, in steps of dt; the last step is what is left."""
    if not dt > 0 or t == end:
        raise ValueError(f"need dt > 0 and different times, got dt={dt}, t={t}, end={end}")
    sign, steps = (1 if end > t else -1), math.ceil(abs(end - t) / dt - 1e-9)
    return [round(t + sign * k * dt, 12) for k in range(steps)] + [end]


def check_times(t: float, end: float, dt: float) -> None:
    """What both purifiers ask of theirs."""
    if not (1 / LEVELS < t <= 1 and 0 < end < t and dt > 0):
        raise ValueError(f"need 0 < end < t, 0.001 < t <= 1 and dt > 0, got end={end}, t={t}, dt={dt}")
