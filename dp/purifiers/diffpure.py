"""DiffPure (Nie et al. 2022), discrete form: noise the image uniformly to time t, then denoise (methods.md section
1.2).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from dp.diffusion.sampling import ancestral_step, renoise, time_grid, to_01, to_pm1


def purify(
    x: Tensor,
    denoiser,
    classifier,
    rng,
    *,
    on_step: Callable | None = None,
    t: float,
    steps: int | Sequence[float],
    eta: float,
    clamp: str = "plain",
) -> Tensor:
    """x (B,C,H,W) in [0,1] -> x_hat in [0,1]. NFE = number of steps.

    `t`: noise time in (0,1]; `steps`: a count of equal steps or the falling times themselves; `eta`: 1 DDPM ancestral,
    0 DDIM;
    `clamp`: gradient of the final clamp, `plain` (exact) or `straight_through`; `on_step(i, sigma, z, x0)` sees every
    step.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"need 0 <= eta <= 1, got eta={eta}")
    times = time_grid(t, steps)
    sigmas = [denoiser.sigma(t) for t in times[:-1]] + [0.0]
    z = to_pm1(x)
    z = renoise(z, 0.0, sigmas[0], rng.randn_like(z))
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoiser(z, sigma)
        if on_step is not None:
            on_step(i, sigma, z, x0)
        n = rng.randn_like(z) if eta > 0 and sigma_next > 0 else None
        z = ancestral_step(z, x0, sigma, sigma_next, n, eta)
    return to_01(z, clamp)
