"""Heterogeneous noise integration as the released code runs it (GaozhengPei/Purification; methods.md section 1.1,
`Loop, C`).
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from dp.diffusion.sampling import LEVELS, ancestral_step, renoise, to_01, to_pm1
from dp.purifiers.attention_mask import attention_maps, threshold_mask, top_mask

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def index_grid(n: int, t_l: float) -> list[int]:
    """Falling indices of the 1000-level schedule: {0, s, 2s, ...} with s = 1000 // n, cut to its first int(n t_l) + 1
    entries.
    """
    if not 1 <= n <= LEVELS or int(n * t_l) < 1:
        raise ValueError(f"need 1 <= n <= {LEVELS} with n * t_l >= 1, got n={n}, t_l={t_l}")
    stride = LEVELS // n
    return [k * stride for k in range(int(n * t_l), -1, -1) if k * stride < LEVELS - 1]


def purify(
    x: Tensor,
    denoiser,
    classifier,
    rng,
    *,
    on_step: Callable | None = None,
    t_l: float,
    t_s: float,
    jump: int,
    n: int,
    tau: float | None,
    top: float | None,
    mask_input_bug: bool,
    clamp: str = "plain",
    mask_grad: str = "constant",
    temperature: float = 0.05,
) -> Tensor:
    """x (B,C,H,W) in [0,1] -> x_hat in [0,1]. NFE = int(n t_l): resampling goes straight to the next grid point.

    `t_l`, `t_s`: strong and weak noise time; `jump`: U in base steps; `n`: steps for the whole schedule, of which t_l
    is run; the mask is [map >= tau] or, where `top` is given instead, that share of the pixels (item 6);
    `mask_input_bug`: feed the classifier's taps ImageNet-normalised [-1,1] images, whatever it was trained on (item 8);
    `mask_grad`, `temperature`: what an attacker may put in place of the mask's derivative (see `attention.masked`).
    """
    if not 0 < t_s <= t_l <= 1:
        raise ValueError(f"need 0 < t_s <= t_l <= 1, got t_s={t_s}, t_l={t_l}")
    if (tau is None) == (top is None):
        raise ValueError(f"need exactly one of tau and top, got tau={tau}, top={top}")
    known = to_pm1(x)
    # The official code detaches the activations (item 10).
    with torch.set_grad_enabled(torch.is_grad_enabled() and mask_grad != "constant"):
        seen = _imagenet_normalised(known) if mask_input_bug else x
        maps = attention_maps(
            classifier.features(seen), (x.shape[2], x.shape[3]), phi="minmax", root=False
        )  # items 2, 3
        given = {"grad": mask_grad, "temperature": temperature}
        if tau is not None:
            mask = threshold_mask(maps, tau, inclusive=True, **given)  # (B,1,H,W)
        else:
            mask = top_mask(maps, top or 0.0, **given)
    grid = index_grid(n, t_l)
    z = renoise(known, 0.0, denoiser.sigma(grid[0] / LEVELS), rng.randn_like(known))
    for i, (k, k_next) in enumerate(pairwise(grid)):
        sigma, sigma_next = denoiser.sigma(k / LEVELS), denoiser.sigma(k_next / LEVELS)
        if k_next >= LEVELS * t_s:  # stage 1 by the next index (item 18): merge, then U up, no step back (item 19)
            z = mask * z + (1 - mask) * renoise(known, 0.0, sigma, rng.randn_like(z))
            sigma_up = denoiser.sigma(min(1.0, (k + jump) / LEVELS))
            z, sigma = renoise(z, sigma, sigma_up, rng.randn_like(z)), sigma_up
        x0 = denoiser(z, sigma)
        if on_step is not None:
            on_step(i, sigma, z, x0)
        z = ancestral_step(z, x0, sigma, sigma_next, None, eta=0.0)  # item 24: DDIM everywhere
    # Item 26: the result is the variance-preserving state at index 0, not x0.
    return to_01(z / (1 + denoiser.sigma(0.0) ** 2) ** 0.5, clamp)


def _imagenet_normalised(z: Tensor) -> Tensor:
    """(z - mean) / std per colour; a one-channel image takes the constants' average over colours."""
    mean, std = z.new_tensor(IMAGENET_MEAN), z.new_tensor(IMAGENET_STD)
    if z.shape[1] != 3:
        mean, std = mean.mean(), std.mean()
    return (z - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
