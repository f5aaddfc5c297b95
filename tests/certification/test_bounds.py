"""Clopper-Pearson bounds against the binomial distribution itself, and the radii that follow from them."""

import functools
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binom

from dp.certification.bounds import cap, lower_bound, radius_of

ALPHA = 0.001
TRUTHS = [*np.linspace(0.05, 0.95, 16), 0.99, 0.999, 0.9999, 0.5000001]  # 20 values


@functools.cache
def bounds(n: int) -> np.ndarray:
    return np.array([lower_bound(k, n, ALPHA) for k in range(n + 1)])


@pytest.mark.parametrize("n", [100, 1000, 10_000])
def test_the_bound_exceeds_the_truth_with_a_chance_of_at_most_alpha(n):
    """Summed exactly over all counts."""
    counts = np.arange(n + 1)
    chances = [float(binom.pmf(counts, n, p)[bounds(n) > p].sum()) for p in TRUTHS]
    assert max(chances) <= ALPHA
    assert max(chances) > ALPHA / 4  # it is no looser than counts, which are whole numbers, make it


@pytest.mark.parametrize("n", [100, 1000, 10_000])
def test_a_larger_bound_would_be_wrong_too_often(n):
    """The bound is the probability at which the count, or a larger one, has the chance alpha."""
    for count in {1, n // 3, n // 2, n - 1, n}:
        assert binom.sf(count - 1, n, lower_bound(count, n, ALPHA)) == pytest.approx(ALPHA, rel=1e-6)


def test_no_success_bounds_nothing():
    assert lower_bound(0, 100, ALPHA) == 0.0


def test_bounds_rise_with_the_count():
    assert (np.diff(bounds(100)) > 0).all()


@pytest.mark.parametrize(("count", "n", "alpha"), [(5, 4, 0.1), (-1, 4, 0.1), (0, 0, 0.1), (1, 2, 0.0), (1, 2, 1.0)])
def test_values_that_make_no_sense(count, n, alpha):
    with pytest.raises(ValueError, match="need 0 <= count <= n"):
        lower_bound(count, n, alpha)


@pytest.mark.parametrize("n", [10, 100, 1000, 100_000])
def test_the_cap_is_the_radius_of_a_full_count(n):
    assert cap(n, ALPHA, 0.25) == pytest.approx(radius_of(n, n, ALPHA, 0.25), rel=1e-9)
    assert radius_of(n - 1, n, ALPHA, 0.25) < cap(n, ALPHA, 0.25)


def test_known_caps():
    """2.46 sigma and 3.20 sigma."""
    assert [round(cap(n, ALPHA, 1.0), 2) for n in (1000, 10_000)] == [2.46, 3.2]
    assert cap(9, ALPHA, 1.0) == 0.0  # .001^(1/9) is below 1/2


def test_a_bound_of_one_half_or_less_certifies_nothing():
    count = next(k for k, bound in enumerate(bounds(1000)) if bound > 0.5)
    assert radius_of(count - 1, 1000, ALPHA, 0.25) == 0.0
    assert radius_of(count, 1000, ALPHA, 0.25) == pytest.approx(0.25 * NormalDist().inv_cdf(bounds(1000)[count]))
    assert 0 < radius_of(count, 1000, ALPHA, 0.25) < 0.01
