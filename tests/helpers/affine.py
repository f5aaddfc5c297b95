"""Moments of a purification that is affine in its Gaussian noises, read off exactly."""

from collections.abc import Callable

import torch
from torch import Tensor

from dp.diffusion.denoisers import Denoiser

UNIT = 0.01  # small, so that no clamp is reached


class Told:
    """Noise for a batch of one-pixel images: the i-th call gives the i-th column."""

    def __init__(self, noise: Tensor):
        self.columns = list(noise.T)

    def randn_like(self, z: Tensor) -> Tensor:
        return self.columns.pop(0).view(z.shape)


def moments(purify: Callable[..., Tensor], draws: int, x: float, denoiser: Denoiser, **given) -> tuple[float, float]:
    """Mean and variance of x_hat, in [-1,1], of a one-pixel image x in [0,1], each of the `draws` noises in turn set
    to a small value. Fails if the purifier asks for fewer.
    """
    noise = torch.cat([torch.zeros(1, draws), torch.eye(draws)]).double() * UNIT
    told, images = Told(noise), torch.full((draws + 1, 1, 1, 1), x, dtype=torch.float64)
    out = 2 * purify(images, denoiser, None, told, **given).flatten() - 1
    assert not told.columns, f"{len(told.columns)} of {draws} draws were not asked for"
    return out[0].item(), ((out[1:] - out[0]) / UNIT).square().sum().item()
