"""Heterogeneous noise (arXiv 2503.01407) as the paper describes it: strong noise only where the classifier looks."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import OnStep, ancestral_step, renoise, time_grid, to_01, to_pm1
from dp.purifiers.attention_mask import attention_maps, chosen, noise_facts, scattered, threshold_mask
from dp.rng import Streams

RESAMPLINGS = ("single", "multi")  # the paper's, by one jump of U; RePaint's, every step of stage 1 U times


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    t_l: float,
    t_s: float,
    tau: float,
    jump: int,
    steps: int,
    phi: str = "softmax_max",
    eq8_literal: bool = False,
    resample_stage2: bool = False,
    resampling: str = "single",
    random_mask: bool = False,
    region: Callable[[Tensor], Tensor] | None = None,
    strong_steps: int | None = None,
    taps: Sequence[int] | None = None,
    clamp: str = "plain",
    mask_grad: str = "constant",
    temperature: float = 0.05,
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by the paper's Algorithms 1 and 2 and return x_hat in [0,1].

    NFE = steps + steps of stage 1; 2 * steps with `resample_stage2`; steps with `jump` 0; for `multi` see `_again`.
    `t_l`, `t_s`: times of the strong and the weak noise, 0 < t_s <= t_l <= 1. `steps`, `strong_steps`: see
    `two_stage_grid`. `tau`, `phi`, `taps`, `mask_grad`, `temperature`: see `_mask`. `jump`: U, in 1/1000 of the time
    range; 0: no resampling. `eq8_literal`: the mask as Eq. 8 prints it. `resample_stage2`: resample after every step.
    `random_mask`: as many pixels at random places. `region`: gives the masks (B,1,H,W) of images. `clamp`: see `to_01`.
    `on_step(i, sigma, z, x0)` is called once in every step. Raises ValueError for values that do not fit together.
    """
    _check(t_l, t_s, jump, random_mask, region is not None, mask_grad, resampling, resample_stage2)
    attention = (classifier, taps, phi, tau, mask_grad, temperature, rng if random_mask else None)
    mask = region(x) if region else _mask(x, *attention)
    strong = 1 - mask if eq8_literal else mask  # Differs (deviation 1: orientation of the mask)
    known = to_pm1(x)
    z = renoise(known, 0.0, denoiser.sigma(t_l), rng.randn_like(known))  # Differs (deviation 15: uniform start at t_l)
    for i, (t, t_next) in enumerate(pairwise(two_stage_grid(t_l, t_s, steps, strong_steps))):
        sigma, sigma_next = denoiser.sigma(t), denoiser.sigma(t_next) if t_next > 0 else 0.0
        stage1, x0 = t_next >= t_s, denoiser(z, sigma)  # Differs (deviation 60: last insertion of known pixels)
        if on_step is not None:
            on_step(i, sigma, z, x0)
        z = _step(z, x0, sigma, sigma_next, rng, (strong, known) if stage1 else None)
        if resampling == "multi" and stage1:
            z = _again(z, denoiser, sigma, sigma_next, rng, (strong, known), jump - 1)
        elif jump and (stage1 or resample_stage2):
            z = _resample(z, denoiser, rng, t_next, sigma_next, jump)
    return to_01(z, clamp)


def strong_pixels(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    *,
    tau: float,
    phi: str = "softmax_max",
    eq8_literal: bool = False,
    region: Callable[[Tensor], Tensor] | None = None,
    taps: Sequence[int] | None = None,
    **_: object,
) -> Tensor:
    """The mask (B,1,H,W) of x (B,C,H,W) in [0,1]: 1 where a pixel gets the strong noise, else 0."""
    mask = _mask(x, classifier, taps, phi, tau, "constant", 1.0, None) if region is None else region(x)
    return 1 - mask if eq8_literal else mask


def facts(
    x: Tensor, denoiser: Denoiser, classifier: Classifier, *, t_l: float, t_s: float, **settings: Any
) -> dict[str, float]:
    """The share of pixels of x (B,C,H,W) in [0,1] that get the strong noise, in percent, and both noise levels."""
    return noise_facts(strong_pixels(x, denoiser, classifier, **settings), denoiser, t_l, t_s)


def two_stage_grid(t_l: float, t_s: float, steps: int, strong_steps: int | None = None) -> list[float]:
    """`steps` + 1 falling times from t_l to 0 that contain t_s: equal steps from t_l to t_s, and from t_s to 0.

    `strong_steps` of them lead to t_s; None: their numbers are in proportion to the two parts of the time, at least one
    each. With t_s = t_l there is one part. Raises ValueError for fewer steps than parts.
    """
    if t_s == t_l:
        return time_grid(t_l, steps)
    if steps < 2:
        raise ValueError(f"need steps >= 2 with t_s < t_l, one for each stage, got steps={steps}")
    strong = min(max(round(steps * (t_l - t_s) / t_l), 1), steps - 1) if strong_steps is None else strong_steps
    if not 0 < strong < steps:
        raise ValueError(f"need 0 < strong_steps < steps, got strong_steps={strong} and steps={steps}")
    first = [round(t_l - (t_l - t_s) * k / strong, 12) for k in range(strong)]
    return [*first, *time_grid(t_s, steps - strong)]


def _check(
    t_l: float,
    t_s: float,
    jump: int,
    random_mask: bool,
    given: bool,
    mask_grad: str,
    resampling: str,
    resample_stage2: bool,
) -> None:
    if not 0 < t_s <= t_l <= 1:
        raise ValueError(f"need 0 < t_s <= t_l <= 1, got t_s={t_s}, t_l={t_l}")
    if jump < 0:
        raise ValueError(f"need jump >= 0, got jump={jump}")
    if random_mask and given:
        raise ValueError("need random_mask or region, got both")
    if (random_mask or given) and mask_grad != "constant":
        raise ValueError(f"need mask_grad=constant where the mask is random or given, got mask_grad={mask_grad}")
    if resampling not in RESAMPLINGS:
        raise ValueError(f"need resampling among {', '.join(RESAMPLINGS)}, got resampling={resampling!r}")
    if resampling == "multi" and (jump < 1 or resample_stage2):
        raise ValueError(
            f"need jump >= 1 and resample_stage2=false with resampling=multi, got jump={jump}, "
            f"resample_stage2={str(resample_stage2).lower()}"
        )


def _mask(
    x: Tensor,
    classifier: Classifier,
    taps: Sequence[int] | None,
    phi: str,
    tau: float,
    mask_grad: str,
    temperature: float,
    rng: Streams | None,
) -> Tensor:
    """Algorithm 2: the mask (B,1,H,W) of images x (B,C,H,W) in [0,1]; with `rng` as many pixels at random places.

    `taps`: see `chosen`. `phi`: see `attention_maps`. `tau`: threshold in [0,1]. `mask_grad`, `temperature`: what an
    attacker may use in place of the mask's derivative, see `threshold_mask`.
    """
    # Differs (deviation 10: derivative of the mask): the method's own mask is a constant.
    with torch.set_grad_enabled(torch.is_grad_enabled() and mask_grad != "constant"):
        maps = attention_maps(chosen(classifier.features(x), taps), (x.shape[2], x.shape[3]), phi)
        mask = threshold_mask(maps, tau, grad=mask_grad, temperature=temperature)
        return mask if rng is None else scattered(mask, rng)


def _step(
    z: Tensor, x0: Tensor, sigma: float, sigma_next: float, rng: Streams, inside: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Eq. 7, and with `inside` Eqs. 6 to 8: outside of the region of strong noise the input noised to the new level.

    `inside`: that region (B,1,H,W), 1 inside, and the input (B,C,H,W) in [-1,1].
    """
    z = ancestral_step(z, x0, sigma, sigma_next, rng.randn_like(z), eta=1.0)
    if inside is None:
        return z
    strong, known = inside
    return strong * z + (1 - strong) * renoise(known, 0.0, sigma_next, rng.randn_like(z))


def _again(
    z: Tensor,
    denoiser: Denoiser,
    sigma: float,
    sigma_next: float,
    rng: Streams,
    inside: tuple[Tensor, Tensor],
    times: int,
) -> Tensor:
    """RePaint's resampling (Lugmayr et al. 2022, Alg. 1): so many times up by one step, and the same step down again.

    So NFE = steps of stage 1 * U + the other steps (deviation 170: multi-step resampling).
    """
    for _ in range(times):
        z = renoise(z, sigma_next, sigma, rng.randn_like(z))
        z = _step(z, denoiser(z, sigma), sigma, sigma_next, rng, inside)
    return z


def _resample(z: Tensor, denoiser: Denoiser, rng: Streams, t_next: float, sigma_next: float, jump: int) -> Tensor:
    """Eqs. 10 and 11: noise the state at t_next up by `jump` and take one DDIM step back."""
    sigma_up = denoiser.sigma(min(1.0, t_next + jump / 1000))
    if t_next > 0:  # at 0 no noise is added (deviation 20: which steps are resampled)
        z = renoise(z, sigma_next, max(sigma_up, sigma_next), rng.randn_like(z))
    return ancestral_step(z, denoiser(z, sigma_up), sigma_up, sigma_next, None, eta=0.0)
