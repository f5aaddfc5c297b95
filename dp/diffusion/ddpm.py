"""The ancestral step of DDPM (Ho et al. 2020) with each of its variances, in sigma coordinates, z = x0 + sigma n.

The step to x_j of the papers has variance S; the step to z_j = x_j / sqrt(abar_j) has S / abar_j = S (1 + sigma_j^2).
"""

from collections.abc import Sequence
from itertools import pairwise

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


def variance_bounds(sigmas: Sequence[float], variance: str) -> list[tuple[float, float]]:
    """The least and the greatest variance of every step between falling noise levels, of which the last is 0.

    `variance`: `small` and `large` are fixed, so both are equal; of `learned` they are what `learned_variance` lies
    between. The step to the clean image has no variance under `small`. Under the others the public code of improved
    and guided diffusion gives it that of the posterior one step before, as the variance of x and not of z; `large` has
    nothing else there. Raises ValueError for another `variance`, and where `large` or `learned` have only one step.
    """
    if variance not in VARIANCES:
        raise ValueError(f"need variance among {', '.join(VARIANCES)}, got variance={variance!r}")
    small = [small_variance(*levels) for levels in pairwise(sigmas)]
    if variance == "small":
        return [(one, one) for one in small]
    if len(small) < 2:
        raise ValueError(f"need at least 2 steps for variance={variance}, got {len(small)}: set variance=small")
    large = [large_variance(*levels) for levels in pairwise(sigmas)]
    small[-1] = small[-2] / (1 + sigmas[-2] ** 2)
    if variance == "large":
        return [(one, one) for one in [*large[:-1], small[-1]]]
    return list(zip(small, large, strict=True))
