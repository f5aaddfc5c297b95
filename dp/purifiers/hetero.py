"""Heterogeneous noise integration (arXiv 2503.01407), as the paper describes it: strong noise only where the classifier
looks.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from dp.diffusion.sampling import ancestral_step, renoise, time_grid, to_01, to_pm1
from dp.purifiers.attention_mask import attention_maps, scattered, threshold_mask


def purify(
    x: Tensor,
    denoiser,
    classifier,
    rng,
    *,
    on_step: Callable | None = None,
    t_l: float,
    t_s: float,
    tau: float,
    jump: int,
    steps: int,
    phi: str = "softmax_max",
    eq8_literal: bool = False,
    resample_stage2: bool = False,
    random_mask: bool = False,
    clamp: str = "plain",
    mask_grad: str = "constant",
    temperature: float = 0.05,
) -> Tensor:
    """x (B,C,H,W) in [0,1] -> x_hat in [0,1] (Alg. 1-2; methods.md section 1.1). NFE = steps + stage-1 steps, 2 steps
    with `resample_stage2`.

    `t_l`, `t_s`: strong and weak noise time, 0 < t_s <= t_l <= 1; `tau`: mask threshold in [0,1]; `jump`: U of the
    resampling, in 1/1000;
    `steps`: equal steps from t_l to 0; `phi`: form of the attention map (see `attention_maps`); `eq8_literal`: the
    orientation that Eq. 8 and Alg. 1 print, opposite to Eq. 5 (item 1); `resample_stage2`: resample after every step,
    as Alg. 1 prints it (item 20); `random_mask`: as many pixels as the mask has, drawn anew anywhere (ours, a control);
    `mask_grad`, `temperature`: what an attacker may put in place of the mask's
    derivative (see `attention.masked`).
    """
    if not 0 < t_s <= t_l <= 1:
        raise ValueError(f"need 0 < t_s <= t_l <= 1, got t_s={t_s}, t_l={t_l}")
    if jump < 0:
        raise ValueError(f"need jump >= 0, got jump={jump}")
    if random_mask and mask_grad != "constant":
        raise ValueError(f"need mask_grad=constant where the mask is random, got mask_grad={mask_grad}")
    with torch.set_grad_enabled(torch.is_grad_enabled() and mask_grad != "constant"):  # the method's own is (item 10)
        maps = attention_maps(classifier.features(x), (x.shape[2], x.shape[3]), phi)
        mask = threshold_mask(maps, tau, grad=mask_grad, temperature=temperature)  # (B,1,H,W)
        mask = scattered(mask, rng) if random_mask else mask
        strong = 1 - mask if eq8_literal else mask  # Differs: item 1
    known = to_pm1(x)
    z = renoise(known, 0.0, denoiser.sigma(t_l), rng.randn_like(known))  # Differs: item 15, uniform start at t_l
    for i, (t, t_next) in enumerate(pairwise(time_grid(t_l, steps))):
        sigma, sigma_next = denoiser.sigma(t), denoiser.sigma(t_next) if t_next > 0 else 0.0
        x0 = denoiser(z, sigma)
        if on_step is not None:
            on_step(i, sigma, z, x0)
        z = ancestral_step(z, x0, sigma, sigma_next, rng.randn_like(z), eta=1.0)  # Eq. 7
        stage1 = t >= t_s - 1e-9  # Alg. 1: t_s <= t <= t_l (item 18)
        if stage1:  # Eqs. 6-8: outside the mask, the input noised to this level
            z = strong * z + (1 - strong) * renoise(known, 0.0, sigma_next, rng.randn_like(z))
        if stage1 or resample_stage2:  # Eqs. 10-11: U up, one DDIM step back
            sigma_up = denoiser.sigma(min(1.0, t_next + jump / 1000))
            if t_next > 0:
                z = renoise(z, sigma_next, max(sigma_up, sigma_next), rng.randn_like(z))
            z = ancestral_step(
                z, denoiser(z, sigma_up), sigma_up, sigma_next, None, eta=0.0
            )  # at t_next = 0 no noise came (item 20)
    return to_01(z, clamp)
