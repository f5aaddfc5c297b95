"""The ancestral step of DDPM (Ho et al. 2020) with each of its variances, in sigma coordinates, z = x0 + sigma n.

The step to x_j of the papers has variance S; the step to z_j = x_j / sqrt(abar_j) has S / abar_j = S (1 + sigma_j^2).
"""

from torch import Tensor

VARIANCES = ("small", "large", "learned")


def posterior_mean(z: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Mean of z at sigma_next given z (B,C,H,W) at sigma and x0 (Ho et al. 2020, Eq. 7)."""
    return x0 + (sigma_next / sigma) ** 2 * (z - x0)


def small_variance(sigma: float, sigma_next: float) -> float:
    """The posterior variance (beta tilde of Ho et al. 2020, Eq. 7) of a step from sigma to sigma_next; 0 for the step
    to the clean image.
    """
    return sigma_next**2 * (1 - (sigma_next / sigma) ** 2)


def large_variance(sigma: float, sigma_next: float) -> float:
    """The variance of the forward step (beta of Ho et al. 2020) from sigma_next to sigma, in the units of the state at
    sigma_next.
    """
    return (sigma**2 - sigma_next**2) * (1 + sigma_next**2) / (1 + sigma**2)


def learned_variance(u: Tensor, large: float, small: float) -> Tensor:
    """The variance (B,C,H,W) that a network predicts by u (B,C,H,W), about -1 to 1 (Nichol and Dhariwal 2021, Eq. 15):
    its logarithm lies between those of the two fixed variances.

    `small` must be positive. For the step to the clean image the public code takes that of the step before.
    """
    share = (u + 1) / 2
    return large**share * small ** (1 - share)
