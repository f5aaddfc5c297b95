"""Mean and variance of what a purifier returns where it is affine in its noise: a Gaussian denoiser, no clamp."""

from collections.abc import Callable

import torch
from torch import Tensor

from dp.diffusion.denoisers import Gaussian
from dp.diffusion.sampling import vp_sigmas

MEAN, STD, X = 0.1, 0.3, 0.52  # of the data in [-1,1]; the image in [0,1]
SIZE = 0.01  # of the noise that is tried


class Columns:
    """Noise for a batch of one-pixel images: the i-th call gives the i-th column."""

    def __init__(self, noise: Tensor):
        self.columns = list(noise.T)

    def randn_like(self, z: Tensor) -> Tensor:
        return self.columns.pop(0).view(z.shape)


def moments(purify: Callable[..., Tensor], draws: int, **given) -> tuple[float, float]:
    """Mean and variance of the purified pixel X in [-1,1], for data of N(MEAN, STD^2).

    The map is affine in its Gaussian noises, so they are read off with each of the `draws` noises in turn set to SIZE.
    """
    noise = Columns(torch.cat([torch.zeros(1, draws), torch.eye(draws)]).double() * SIZE)
    x = torch.full((draws + 1, 1, 1, 1), X, dtype=torch.float64)
    out = 2 * purify(x, Gaussian(MEAN, STD), None, noise, clamp="none", **given).flatten() - 1
    assert not noise.columns, f"{len(noise.columns)} of {draws} draws were not asked for"
    return out[0].item(), ((out[1:] - out[0]) / SIZE).square().sum().item()


def abar(k: int) -> float:
    """The papers' cumulative product of alphas at index k of 0 to 999; 1 for the clean image, k = -1."""
    return 1.0 if k < 0 else (1 / (1 + vp_sigmas()[k] ** 2)).item()


def denoised(state: float, k: int) -> float:
    """E[x0 | x_k] in the papers' coordinates."""
    a = abar(k)
    return MEAN + a**0.5 * STD**2 / (a * STD**2 + 1 - a) * (state - a**0.5 * MEAN)


def posterior(state: float, k: int, j: int) -> tuple[float, float, float]:
    """Mean of x_j given x_k and its denoised image, with the variances beta tilde and beta (Ho et al. 2020, Eq. 7)."""
    a, a_next = abar(k), abar(j)
    beta = 1 - a / a_next
    mean = beta * a_next**0.5 / (1 - a) * denoised(state, k) + (1 - a_next) * (1 - beta) ** 0.5 / (1 - a) * state
    return mean, (1 - a_next) / (1 - a) * beta, beta
