"""DiffPure's ablation LDSDE (Nie et al. 2022): Langevin dynamics around the image, without noise to begin with."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torchsde
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.brownian import Brownian
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import OnStep, to_01, to_pm1
from dp.diffusion.vp_sde import VPSDE, check_times, fixed_times
from dp.rng import Streams

SOLVERS = ("own", "adjoint")


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    t: float,
    dt: float,
    end: float,
    lam: float,
    sigma2: float,
    eta: float,
    score_t: float,
    beta_min: float,
    beta_max: float,
    repeats: int = 1,
    solver: str = "own",
    clamp: str = "plain",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by Euler-Maruyama on Langevin dynamics around x, and return x_hat in [0,1].

    dv = -lam/2 (-score(v) + (v - x_in) / sigma2) ds + eta sqrt(lam) dw from v = x_in, for a duration of t - end.
    NFE = repeats * ceil((t - end) / dt), and one more in each repeat with `adjoint`.
    `dt`: the step in time. `lam`, `sigma2`, `eta`: speed, width of the pull to x_in, and size of the noise.
    `score_t`: the time in (0,1] at which the network is asked for every score.
    `beta_min`, `beta_max`: noise rates of the VP-SDE at times 0 and 1, which give the noise at `score_t`.
    `repeats`: how often the dynamics run, each time from the last state and around the same x_in.
    `solver`: `own` has the exact gradient. `adjoint` (torchsde's `sdeint_adjoint`, which the released code uses) has
    the same output, but loses the gradient through x_in in the drift (deviation 63: the adjoint of LDSDE).
    `clamp`: the last clamp to [0,1], see `to_01`.
    `on_step(i, sigma, z, x0)` is called after every call of the denoiser, by `own` only.
    Raises ValueError for values outside these ranges.
    """
    check_times(t, end, dt)
    if min(lam, sigma2) <= 0 or eta < 0 or not 0 < score_t <= 1 or solver not in SOLVERS:
        given = f"lam={lam}, sigma2={sigma2}, eta={eta}, score_t={score_t}, solver={solver}"
        raise ValueError(f"need lam, sigma2 > 0, eta >= 0, 0 < score_t <= 1, solver own or adjoint, got {given}")
    if repeats < 1:
        raise ValueError(f"need repeats >= 1, got repeats={repeats}")
    noise = VPSDE(beta_min, beta_max).sigma(score_t)
    field = _Langevin(denoiser, to_pm1(x), lam, sigma2, eta, denoiser.sigma(score_t), noise / math.hypot(1, noise))
    times = fixed_times(0.0, t - end, dt)
    v = field.x_in
    for done in range(repeats):
        first = done * (len(times) - 1)
        v = field.by_adjoint(v, rng, times, dt) if solver == "adjoint" else field.walk(v, rng, times, first, on_step)
    return to_01(v, clamp)  # Differs (deviation 62: what the classifier is given)


@dataclass
class _Langevin:
    """The dynamics around `x_in` (B,C,H,W) in [-1,1].

    `level`: sigma at which the denoiser is called. `deviation`: sqrt(1 - abar) that divides the predicted noise.
    `f` and `g` are torchsde's interface, for states (B,d).
    """

    denoiser: Denoiser
    x_in: Tensor
    lam: float
    sigma2: float
    eta: float
    level: float
    deviation: float
    noise_type, sde_type = "diagonal", "ito"  # as in the released code

    def drift(self, v: Tensor, z: Tensor, x0: Tensor) -> Tensor:
        score = (x0 - z) / (self.level * self.deviation)  # Differs (deviation 67: the noise level of LDSDE's score)
        return -self.lam / 2 * (-score + (v - self.x_in) / self.sigma2)

    def walk(self, v: Tensor, rng: Streams, times: list[float], first: int, on_step: OnStep | None) -> Tensor:
        for i, (s, s_next) in enumerate(pairwise(times)):
            z = v * math.hypot(1, self.level)
            x0 = self.denoiser(z, self.level)
            if on_step is not None:
                on_step(first + i, self.level, z, x0)
            size = s_next - s
            v = v + size * self.drift(v, z, x0) + self.eta * math.sqrt(self.lam * size) * rng.randn_like(v)
        return v

    def by_adjoint(self, v: Tensor, rng: Streams, times: list[float], dt: float) -> Tensor:
        y = v.reshape(len(v), -1)
        bm = Brownian(rng, y.detach(), times, fixed_times(times[-1], times[0], dt))
        ts = torch.tensor([times[0], times[-1]], dtype=torch.float64)
        # The adjoint knows the start alone: x_in inside the drift is a constant for it, as the weights are.
        ys = torchsde.sdeint_adjoint(self, y, ts, bm=bm, method="euler", dt=dt, adjoint_params=())  # pyright: ignore[reportArgumentType]
        return ys[-1].view(self.x_in.shape)

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        v = y.view(self.x_in.shape)
        z = v * math.hypot(1, self.level)
        return self.drift(v, z, self.denoiser(z, self.level)).reshape(y.shape)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        return y.new_full((1, 1), self.eta * math.sqrt(self.lam)).expand(y.shape)
