"""DDPM's step for data of one Gaussian in the papers' own coordinates, x_k = sqrt(abar_k) x0 + sqrt(1 - abar_k) n."""

from dp.diffusion.sampling import vp_sigmas

MEAN, STD, X = 0.1, 0.3, 0.52  # of the data in [-1,1]; an image of one pixel in [0,1]


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
