"""DiffPure (Nie et al. 2022) in discrete time: add noise up to time t, then denoise step by step."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import LEVELS, OnStep, ancestral_step, renoise, time_grid, to_01, to_pm1
from dp.rng import Streams


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    t: float,
    steps: int | Sequence[float],
    eta: float,
    index_shift: int = 0,
    clamp: str = "plain",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by DiffPure and return x_hat in [0,1]. NFE = number of steps.

    `t`: noise time in (0,1].
    `steps`: the number of equal steps, or the falling times themselves.
    `eta`: 1 for DDPM's ancestral steps, 0 for DDIM's.
    `index_shift`: time t has the noise of index 1000 t - index_shift of the 1000-level schedule; 1 in DiffPure's code
    (deviation 61: index of a time).
    `clamp`: the last step's clamp to [0,1], see `to_01`.
    `on_step(i, sigma, z, x0)` is called after every call of the denoiser.
    Raises ValueError for values outside these ranges.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"need 0 <= eta <= 1, got eta={eta}")
    times = time_grid(t, steps)
    if not 0 <= index_shift / LEVELS <= times[-2]:
        raise ValueError(f"need 0 <= index_shift <= 1000 x the last time {times[-2]}, got index_shift={index_shift}")
    sigmas = [denoiser.sigma(t - index_shift / LEVELS) for t in times[:-1]] + [0.0]
    z = to_pm1(x)
    z = renoise(z, 0.0, sigmas[0], rng.randn_like(z))
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoiser(z, sigma)
        if on_step is not None:
            on_step(i, sigma, z, x0)
        n = rng.randn_like(z) if eta > 0 and sigma_next > 0 else None
        z = ancestral_step(z, x0, sigma, sigma_next, n, eta)
    return to_01(z, clamp)
