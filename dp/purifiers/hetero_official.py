"""Heterogeneous noise (arXiv 2503.01407) as the released code runs it (GaozhengPei/Purification)."""

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import LEVELS, OnStep, ancestral_step, renoise, to_01, to_pm1
from dp.purifiers.attention_mask import attention_maps, chosen, noise_facts, threshold_mask, top_mask
from dp.rng import Streams

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def index_grid(n: int, t_l: float) -> list[int]:
    """The falling indices of the 1000-level schedule that the code visits.

    They are the first int(n t_l) + 1 of 0, s, 2s, ..., with the stride s = 1000 // n. `n`: steps for the whole
    schedule, 1 to 1000. Raises ValueError where no step is left.
    """
    if not 1 <= n <= LEVELS or int(n * t_l) < 1:
        raise ValueError(f"need 1 <= n <= {LEVELS} with n * t_l >= 1, got n={n}, t_l={t_l}")
    stride = LEVELS // n
    return [k * stride for k in range(int(n * t_l), -1, -1) if k * stride < LEVELS - 1]


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    t_l: float,
    t_s: float,
    jump: int,
    n: int,
    tau: float | None,
    top: float | None,
    mask_input_bug: bool,
    taps: Sequence[int] | None = None,
    clamp: str = "plain",
    mask_grad: str = "constant",
    temperature: float = 0.05,
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] as the released code does and return x_hat in [0,1].

    NFE = int(n t_l), because resampling goes straight to the next grid point.
    `t_l`, `t_s`: times of the strong and the weak noise, 0 < t_s <= t_l <= 1. `jump`: U in steps of the 1000-level
    schedule. `n`: steps for the whole schedule, of which the part below t_l is run. `tau`, `top`: exactly one is given.
    The mask is [map >= tau], or the share `top` of the pixels with the highest map (deviation 6: the mask on ImageNet).
    `mask_input_bug`: feed the classifier's taps [-1,1] images with ImageNet's mean and std, whatever the classifier was
    trained on (deviation 8: input range of the mask). `taps`: see `chosen`. `clamp`: see `to_01`. `mask_grad`,
    `temperature`: what an attacker may use in place of the mask's derivative, see `masked`. `on_step(i, sigma, z, x0)`
    is called after every call of the denoiser.
    Raises ValueError for values outside these ranges.
    """
    if not 0 < t_s <= t_l <= 1 or jump < 0:
        raise ValueError(f"need 0 < t_s <= t_l <= 1 and jump >= 0, got t_s={t_s}, t_l={t_l}, jump={jump}")
    known = to_pm1(x)
    grid, seen = index_grid(n, t_l), _imagenet_normalized(known) if mask_input_bug else x
    mask = _mask(seen, classifier, taps, tau, top, mask_grad, temperature)
    z = renoise(known, 0.0, denoiser.sigma(grid[0] / LEVELS), rng.randn_like(known))
    for i, (k, k_next) in enumerate(pairwise(grid)):
        sigma, sigma_next = denoiser.sigma(k / LEVELS), denoiser.sigma(k_next / LEVELS)
        # The next index decides (deviation 18: stage borders); U up, no step back (deviation 19: resampling order).
        if k_next >= LEVELS * t_s:
            z = mask * z + (1 - mask) * renoise(known, 0.0, sigma, rng.randn_like(z))
            sigma_up = denoiser.sigma(min(1.0, (k + jump) / LEVELS))
            z, sigma = renoise(z, sigma, sigma_up, rng.randn_like(z)), sigma_up
        x0 = denoiser(z, sigma)
        if on_step is not None:
            on_step(i, sigma, z, x0)
        z = ancestral_step(z, x0, sigma, sigma_next, None, eta=0.0)  # deviation 24: DDIM in every step
    # The result is the variance-preserving state at index 0 (deviation 26: end point of the chain), not x0.
    return to_01(z / (1 + denoiser.sigma(0.0) ** 2) ** 0.5, clamp)


def strong_pixels(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    *,
    tau: float | None,
    top: float | None,
    mask_input_bug: bool,
    taps: Sequence[int] | None = None,
    **_: object,
) -> Tensor:
    """The mask (B,1,H,W) of x (B,C,H,W) in [0,1]: 1 where a pixel gets the strong noise, else 0."""
    seen = _imagenet_normalized(to_pm1(x)) if mask_input_bug else x
    return _mask(seen, classifier, taps, tau, top, "constant", 1.0)


def facts(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    *,
    t_l: float,
    t_s: float,
    jump: int,
    n: int,
    **settings: Any,
) -> dict[str, float]:
    """The share of pixels of x (B,C,H,W) in [0,1] that get the strong noise, in percent, and the times that the grid
    leaves of t_l and t_s: the first index, and the last one at which known pixels are inserted, with the jump (0 if
    they never are; deviation 17: weak noise that remains).
    """
    grid = index_grid(n, t_l)
    inserted = [k + jump for k, k_next in pairwise(grid) if k_next >= LEVELS * t_s]
    weak = min(inserted, default=0) / LEVELS
    return noise_facts(strong_pixels(x, denoiser, classifier, **settings), denoiser, grid[0] / LEVELS, weak)


def _mask(
    x: Tensor,
    classifier: Classifier,
    taps: Sequence[int] | None,
    tau: float | None,
    top: float | None,
    mask_grad: str,
    temperature: float,
) -> Tensor:
    """The mask (B,1,H,W) from the classifier's input x (B,C,H,W)."""
    if (tau is None) == (top is None):
        raise ValueError(f"need exactly one of tau and top, got tau={tau}, top={top}")
    # The released code detaches the activations (deviation 10: derivative of the mask).
    with torch.set_grad_enabled(torch.is_grad_enabled() and mask_grad != "constant"):
        # Min-max in place of softmax (deviation 2: normalization of the map), no root (deviation 3: root of the map).
        maps = attention_maps(chosen(classifier.features(x), taps), (x.shape[2], x.shape[3]), phi="minmax", root=False)
        if tau is not None:
            return threshold_mask(maps, tau, inclusive=True, grad=mask_grad, temperature=temperature)
        return top_mask(maps, top or 0.0, grad=mask_grad, temperature=temperature)


def _imagenet_normalized(z: Tensor) -> Tensor:
    """(z - mean) / std per color channel; a one-channel image takes the constants' average over the channels."""
    mean, std = _constants(z.shape[1], z.dtype, z.device)
    return (z - mean) / std


@functools.cache
def _constants(channels: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std, (1,3,1,1) or (1,1,1,1)."""
    mean, std = (torch.tensor(constant, dtype=dtype).to(device) for constant in (IMAGENET_MEAN, IMAGENET_STD))
    if channels != 3:
        mean, std = mean.mean(), std.mean()
    return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
