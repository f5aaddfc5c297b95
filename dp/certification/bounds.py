"""From counts to a certified radius (Cohen et al. 2019, Sec. 3.2 and App. D)."""

from statistics import NormalDist

ABSTAIN = -1  # the class of an image whose lower bound is not above 1/2


def lower_bound(count: int, n: int, alpha: float) -> float:
    """One-sided lower bound of a probability, from `count` successes in `n` trials (Clopper and Pearson 1934).

    It exceeds the true probability with a chance of at most `alpha`. Raises ValueError unless 0 <= count <= n, n >= 1
    and 0 < alpha < 1.
    """
    if n < 1 or not 0 <= count <= n or not 0 < alpha < 1:
        raise ValueError(f"need 0 <= count <= n, n >= 1, 0 < alpha < 1, got count={count}, n={n}, alpha={alpha}")
    if count == 0:
        return 0.0
    from scipy.stats import beta  # imported here because it takes long

    return float(beta.ppf(alpha, count, n - count + 1))


def radius_of(count: int, n: int, alpha: float, sigma: float) -> float:
    """The certified l2 radius sigma Phi^-1(pA), with pA the lower bound of the probability of the selected class.

    It has the unit of `sigma`. It is 0.0 where pA <= 1/2: the smoothed classifier then abstains.
    """
    p = lower_bound(count, n, alpha)
    return sigma * NormalDist().inv_cdf(p) if p > 0.5 else 0.0


def cap(n: int, alpha: float, sigma: float) -> float:
    """The largest radius that n samples can certify, sigma Phi^-1(alpha^(1/n)): all samples have the selected class.

    It is 0.0 if even that is an abstention.
    """
    p = alpha ** (1 / n)
    return sigma * NormalDist().inv_cdf(p) if p > 0.5 else 0.0
