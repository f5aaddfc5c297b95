"""DiffPure (Nie et al. 2022) in discrete time: add noise up to time t, then denoise step by step."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.ddpm import VARIANCES, large_variance, learned_variance, posterior_mean, small_variance
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import LEVELS, OnStep, ancestral_step, clip_pm1, renoise, time_grid, to_01, to_pm1
from dp.rng import Streams


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    t: float | None,
    steps: int | Sequence[float],
    eta: float,
    index_shift: int = 0,
    variance: str = "small",
    clip_x0: bool = False,
    pixel_sigma: float | None = None,
    clamp: str = "plain",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by DiffPure and return x_hat in [0,1]. NFE = number of steps, one less where the
    denoiser's clock has no noise at the last time.

    `t`: noise time in (0,1]. `steps`: the number of equal steps, or the falling times themselves.
    `eta`: 1 for DDPM's ancestral steps, 0 for DDIM's.
    `index_shift`: time t has the noise of index 1000 t - index_shift of the 1000-level schedule; 1 in DiffPure's code
    (deviation 61: index of a time).
    `variance`: of an ancestral step, see `dp.diffusion.ddpm`. `large` and `learned` need eta = 1.
    `clip_x0`: clip every x0 to [-1,1] before it is used.
    `pixel_sigma`: standard deviation of the noise in units of x, in place of t (which is then None) and for one step
    only; as in randomized smoothing (Carlini et al. 2023). The denoiser's noise is twice that.
    `clamp`: the last step's clamp to [0,1], see `to_01`.
    `on_step(i, sigma, z, x0)` is called after every call of the denoiser.
    Raises ValueError for values outside these ranges, and for a learned variance that the network does not have.
    """
    _check(eta, variance)
    sigmas = [*_levels(denoiser, t, steps, index_shift, pixel_sigma), 0.0]
    z = to_pm1(x)
    z = renoise(z, 0.0, sigmas[0], rng.randn_like(z))
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0, u = denoiser.with_variance(z, sigma) if variance == "learned" else (denoiser(z, sigma), None)
        x0 = clip_pm1(x0) if clip_x0 else x0
        if on_step is not None:
            on_step(i, sigma, z, x0)
        n = rng.randn_like(z) if eta > 0 and sigma_next > 0 else None
        if n is None or variance == "small":
            z = ancestral_step(z, x0, sigma, sigma_next, n, eta)
        else:
            z = posterior_mean(z, x0, sigma, sigma_next) + _spread(u, sigma, sigma_next) * n
    return to_01(z, clamp)  # Differs (deviation 62: what the classifier is given)


def _check(eta: float, variance: str) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"need 0 <= eta <= 1, got eta={eta}")
    if variance not in VARIANCES:
        raise ValueError(f"need variance among {', '.join(VARIANCES)}, got variance={variance!r}")
    if variance != "small" and eta != 1:
        raise ValueError(f"need eta=1 (ancestral steps) for variance={variance}, got eta={eta}")


def _levels(
    denoiser: Denoiser, t: float | None, steps: int | Sequence[float], index_shift: int, pixel_sigma: float | None
) -> list[float]:
    """The noise levels at which the denoiser is called, falling."""
    if pixel_sigma is not None:
        if t is not None or steps != 1 or not pixel_sigma > 0:
            got = f"pixel_sigma={pixel_sigma}, t={t}, steps={steps}"
            raise ValueError(
                f"need pixel_sigma > 0 with t=null and steps=1, or pixel_sigma=null with a time t, got {got}"
            )
        return [2 * pixel_sigma]  # images in [-1,1] are twice as wide
    if t is None:
        raise ValueError("need a noise time t, or pixel_sigma in its place, got neither")
    times = time_grid(t, steps)
    if not 0 <= index_shift / LEVELS <= times[-2]:
        raise ValueError(f"need 0 <= index_shift <= 1000 x the last time {times[-2]}, got index_shift={index_shift}")
    levels = [denoiser.sigma(t - index_shift / LEVELS) for t in times[:-1]]
    noisy = [sigma for sigma in levels if sigma > 0]  # a clock in continuous time has none at its start
    if not noisy:
        raise ValueError(
            f"need noise at one of the times, got none with {t=}, {steps=}, {index_shift=}: raise purifier.t"
        )
    return noisy


def _spread(u: Tensor | None, sigma: float, sigma_next: float) -> Tensor | float:
    """The standard deviation of a step: the large one, or the one that the network predicts by u."""
    large = large_variance(sigma, sigma_next)
    return large**0.5 if u is None else learned_variance(u, large, small_variance(sigma, sigma_next)).sqrt()
