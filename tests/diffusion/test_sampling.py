"""Sampling steps against the textbook formulas, written in variance-preserving coordinates x_t = sqrt(abar) z."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from dp.diffusion.denoisers import Gaussian
from dp.diffusion.sampling import (
    ancestral_step,
    heun_step,
    noise_levels,
    renoise,
    time_grid,
    to_01,
    to_pm1,
    vp_sigma,
    vp_sigmas,
)

BETA = np.linspace(1e-4, 2e-2, 1000)
ABAR = np.cumprod(1 - BETA)
LEVEL = np.sqrt((1 - ABAR) / ABAR)  # noise per unit of signal
JUMPS = [(999, 998), (999, 400), (200, 199), (200, 190), (400, 100), (57, 0), (1, 0)]  # one level, and respaced


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step_in_vp(x_k, x0, k, j, n, eta):
    """ancestral_step from level k to level j, seen in variance-preserving coordinates."""
    z = ancestral_step(x_k / math.sqrt(ABAR[k]), x0, LEVEL[k], LEVEL[j], n, eta)
    return z * math.sqrt(ABAR[j])


@pytest.mark.parametrize(
    ("k", "abar"),
    [(0, 0.9999), (50, 0.9700), (100, 0.8951), (150, 0.7859), (200, 0.6563), (300, 0.3940), (400, 0.1936)],
)
def test_abar_of_the_linear_schedule(k, abar):
    assert round(1 / (1 + vp_sigmas()[k].item() ** 2), 4) == abar
    assert round(1 / (1 + vp_sigma(k / 1000) ** 2), 4) == abar


@pytest.mark.parametrize(("t", "sigma"), [(0.1, "0.342"), (0.2, "0.724"), (0.4, "2.04")])
def test_sigma_at_published_times(t, sigma):
    assert f"{vp_sigma(t):.3g}" == sigma


def test_table_of_sigmas():
    assert vp_sigmas().dtype == torch.float64
    np.testing.assert_allclose(vp_sigmas().numpy(), LEVEL, rtol=1e-10)


@pytest.mark.parametrize("t", [0.0, 0.0004, 0.1237, 0.5, 0.9985, 0.999, 0.9995, 1.0])
def test_sigma_between_indices_is_log_linear_and_flat_at_the_end(t):
    assert math.log(vp_sigma(t)) == pytest.approx(np.interp(1000 * t, np.arange(1000), np.log(LEVEL)), abs=1e-11)


def test_sigma_rises_with_time():
    assert all(a < b for a, b in pairwise(map(vp_sigma, np.linspace(0, 0.999, 501))))


@pytest.mark.parametrize("t", [-1e-9, 1.0000001, float("nan"), 200])
def test_sigma_of_a_time_outside(t):
    with pytest.raises(ValueError, match="need a time t in"):
        vp_sigma(t)


@pytest.mark.parametrize(
    ("t", "steps", "grid"),
    [
        (0.2, 1, [0.2, 0]),
        (0.2, 4, [0.2, 0.15, 0.1, 0.05, 0]),
        (1.0, 5, [1, 0.8, 0.6, 0.4, 0.2, 0]),
        (0.3, [0.3, 0.07, 0.01], [0.3, 0.07, 0.01, 0]),
        (0.3, (0.3,), [0.3, 0]),
    ],
)
def test_time_grid(t, steps, grid):
    assert time_grid(t, steps) == grid


def test_noise_levels_end_at_the_last_level_with_noise():
    assert noise_levels(lambda t: t, 0.1, 0.0, 3) == [0.1, 0.05, 0.0]


def test_noise_levels_of_published_chains():
    """GDMP's on CIFAR-10 and on the 250 levels of guided diffusion, MimicDiffusion's, by index of the schedule."""
    respaced = [round(i * 999 / 249) for i in range(44, -1, -1)]
    for given, indices in (
        ((0.035, 0.0, 36), list(range(35, -1, -1))),
        ((0.17653, 0.0, 45), respaced),
        ((0.999, 0.009, 100), list(range(999, 0, -10))),
    ):
        asked = []

        def clock(t: float, asked=asked) -> float:
            asked.append(round(1000 * t))
            return 0.5 + t

        assert noise_levels(clock, *given) == pytest.approx([*(0.5 + k / 1000 for k in indices), 0.0], abs=1e-3)
        assert asked == indices


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((0.1, 0.1, 5), "need 0 <= end < t <= 1 and 2 <= steps"),
        ((1.1, 0.1, 5), "need 0 <= end < t <= 1 and 2 <= steps"),
        ((0.1, 0.0, 1), "need 0 <= end < t <= 1 and 2 <= steps"),
    ],
)
def test_noise_levels_errors(given, words):
    with pytest.raises(ValueError, match=words):
        noise_levels(lambda t: t, *given)


def test_time_grid_hits_integer_indices():
    """0.2 * (1 - 66/100) is 0.06799999999999999 in floating point; the grid says 0.068."""
    assert [1000 * t for t in time_grid(0.2, 100)] == pytest.approx(range(200, -1, -2), abs=1e-9)
    assert time_grid(0.2, 100)[66] == 0.068


@pytest.mark.parametrize(
    ("t", "steps", "words"),
    [
        (0, 4, "0 < t"),
        (-0.1, 4, "0 < t"),
        (1.1, 4, "0 < t"),
        (float("nan"), 4, "0 < t"),
        (0.2, 0, "1 <= steps <= 100000, got steps=0"),
        (0.2, -3, "1 <= steps <= 100000, got steps=-3"),
        (0.2, [], "falling times"),
        (0.2, [0.1, 0.05], "falling times"),  # does not begin at t
        (0.2, [0.2, 0.2], "falling times"),
        (0.2, [0.2, 0.1, 0.15], "falling times"),
        (0.2, [0.2, 0.0], "falling times"),  # the final 0 is implied
        (0.2, [0.2, -0.1], "falling times"),
    ],
)
def test_time_grid_errors(t, steps, words):
    with pytest.raises(ValueError, match=words):
        time_grid(t, steps)


@pytest.mark.parametrize(("k", "j"), JUMPS)
def test_eta_1_is_the_ddpm_posterior(k, j):
    """Ho et al. 2020, Eqs. 6 and 7, with the alpha and beta of the jump from j to k."""
    alpha = ABAR[k] / ABAR[j] if k - j > 1 else 1 - BETA[k]
    beta = 1 - alpha if k - j > 1 else BETA[k]
    x_k, x0, n = normal(0, 64), normal(1, 64), normal(2, 64)
    mean = math.sqrt(ABAR[j]) * beta / (1 - ABAR[k]) * x0 + math.sqrt(alpha) * (1 - ABAR[j]) / (1 - ABAR[k]) * x_k
    variance = (1 - ABAR[j]) / (1 - ABAR[k]) * beta
    torch.testing.assert_close(
        step_in_vp(x_k, x0, k, j, n, 1.0), mean + math.sqrt(variance) * n, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("k", "j"), JUMPS)
def test_eta_0_is_ddim(k, j):
    """Song et al. 2021, Eq. 12 with sigma = 0."""
    x_k, x0 = normal(0, 64), normal(1, 64)
    eps = (x_k - math.sqrt(ABAR[k]) * x0) / math.sqrt(1 - ABAR[k])
    expected = math.sqrt(ABAR[j]) * x0 + math.sqrt(1 - ABAR[j]) * eps
    for n in (None, normal(2, 64)):
        torch.testing.assert_close(step_in_vp(x_k, x0, k, j, n, 0.0), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.25, 0.5, 0.9])
@pytest.mark.parametrize(("k", "j"), JUMPS)
def test_eta_between(k, j, eta):
    """Song et al. 2021, Eqs. 12 and 16."""
    x_k, x0, n = normal(0, 64), normal(1, 64), normal(2, 64)
    s = eta * math.sqrt((1 - ABAR[j]) / (1 - ABAR[k]) * (1 - ABAR[k] / ABAR[j]))
    eps = (x_k - math.sqrt(ABAR[k]) * x0) / math.sqrt(1 - ABAR[k])
    expected = math.sqrt(ABAR[j]) * x0 + math.sqrt(1 - ABAR[j] - s**2) * eps + s * n
    torch.testing.assert_close(step_in_vp(x_k, x0, k, j, n, eta), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_last_step_returns_the_clean_image(eta):
    z, x0, n = normal(0, 2, 3, 4, 4), normal(1, 2, 3, 4, 4), normal(2, 2, 3, 4, 4)
    assert torch.equal(ancestral_step(z, x0, 0.7, 0.0, n, eta), x0)


def test_a_step_keeps_shape_and_type():
    z = torch.randn(2, 3, 4, 4)
    assert ancestral_step(z, z, 0.7, 0.3, z, 1.0).dtype == torch.float32
    assert renoise(z, 0.3, 0.7, z).shape == z.shape


@pytest.mark.parametrize(("k", "up"), [(None, 201), (0, 1), (99, 3), (180, 20), (500, 499)])
def test_renoise_is_single_forward_steps_in_law(k, up):
    """x_{i+1} = sqrt(alpha) x_i + sqrt(beta) n, `up` times from level k; k = None starts from the clean image."""
    first = 0 if k is None else k + 1
    gain, variance = 1.0, 0.0
    for i in range(first, first + up):
        gain *= math.sqrt(1 - BETA[i])
        variance = (1 - BETA[i]) * variance + BETA[i]
    start, end = (0.0, 1.0) if k is None else (LEVEL[k], ABAR[k]), first + up - 1
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)

    def jump(x, n):
        return (renoise(x / math.sqrt(start[1]), start[0], LEVEL[end], n) * math.sqrt(ABAR[end])).item()

    assert jump(zero, zero) == 0
    assert jump(one, zero) == pytest.approx(gain, rel=1e-12)
    assert jump(zero, one) ** 2 == pytest.approx(variance, rel=1e-9)
    assert jump(one, one) == pytest.approx(jump(one, zero) + jump(zero, one), rel=1e-12)


def test_renoise_only_goes_up():
    z = torch.zeros(1, 1, 2, 2)
    assert torch.equal(renoise(z, 0.5, 0.5, torch.ones_like(z)), z)
    with pytest.raises(AssertionError, match="renoise goes up"):
        renoise(z, 0.5, 0.49, z)


def chain(x, noise, sigmas, eta, denoiser):
    """Noise to the first level, then down to the clean image; `noise()` gives each step's n."""
    z = renoise(x, 0.0, sigmas[0], noise())
    for sigma, sigma_next in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        z = ancestral_step(z, denoiser(z, sigma), sigma, sigma_next, noise(), eta)
    return z


def recursion(x, indices, eta, mean, std):
    """Mean and variance of the chain's result from the constant x, as affine maps of x_t."""
    m, v = math.sqrt(ABAR[indices[0]]) * x, 1 - ABAR[indices[0]]
    for k, j in zip(indices, [*indices[1:], None], strict=True):
        a, b = ABAR[k], 1.0 if j is None else ABAR[j]
        gain = std**2 * math.sqrt(a) / (a * std**2 + 1 - a)  # of E[x0 | x_k], Gaussian conditioning
        offset = mean * (1 - gain * math.sqrt(a))
        s2 = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        eps = math.sqrt(max(0.0, 1 - b - s2) / (1 - a))
        slope = math.sqrt(b) * gain + eps * (1 - math.sqrt(a) * gain)
        m, v = slope * m + (math.sqrt(b) - eps * math.sqrt(a)) * offset, slope**2 * v + s2
    return m, v


X, MEAN, STD = 0.9, -0.3, 0.4


def indices_of(steps):
    return [min(round(1000 * t), 999) for t in np.linspace(1, 0, steps + 1)[:-1]]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_chain_of_a_gaussian_denoiser_samples_as_the_recursion_says(steps, eta):
    generator, count = torch.Generator().manual_seed(steps), 20_000 if steps < 1000 else 8_000
    x = torch.full((1, 1, 1, count), X)
    sigmas = [vp_sigma(t) for t in time_grid(1.0, steps)[:-1]]
    out = chain(x, lambda: torch.randn(x.shape, generator=generator), sigmas, eta, Gaussian(MEAN, STD)).double()
    m, v = recursion(X, indices_of(steps), eta, MEAN, STD)
    assert abs(out.mean().item() - m) < 5 * math.sqrt(v / count)
    assert abs(out.var().item() - v) < 5 * v * math.sqrt(2 / (count - 1))


def exact_law(steps, eta, gaussian):
    """Mean and variance of the chain without sampling: position i of the image feels the i-th noise alone."""
    sigmas = [vp_sigma(t) for t in time_grid(1.0, steps)[:-1]]
    x, noises = torch.full((steps + 1,), X, dtype=torch.float64), iter([*torch.eye(steps + 1, dtype=torch.float64)])
    mean = chain(x[:1], lambda: torch.zeros(1, dtype=torch.float64), sigmas, eta, gaussian).item()
    return mean, (chain(x, lambda: next(noises), sigmas, eta, gaussian) - mean).square().sum().item()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_chain_of_a_gaussian_denoiser_tends_to_the_data(eta):
    """Limit of fine grids: the flow's contraction STD / sqrt(STD^2 + sigma^2) for DDIM, a sample of x0 | z for DDPM."""
    laws = [exact_law(steps, eta, Gaussian(MEAN, STD)) for steps in (10, 100, 1000)]
    for steps, law in zip((10, 100, 1000), laws, strict=True):
        assert law == pytest.approx(recursion(X, indices_of(steps), eta, MEAN, STD), rel=1e-8)
    top, gain = LEVEL[-1] ** 2, STD**2 / (STD**2 + LEVEL[-1] ** 2)
    left = math.sqrt(gain) if eta == 0 else gain  # what is left of X - MEAN
    limit = (MEAN + left * (X - MEAN), gain * top if eta == 0 else gain**2 * top + gain * top)
    errors = [[abs(a - b) for a, b in zip(law, limit, strict=True)] for law in laws]
    for coarse, fine in pairwise(errors):
        assert fine[0] < coarse[0] / 4 or fine[0] < 1e-12  # DDPM keeps the mean on any grid
        assert fine[1] < coarse[1] / 4
    assert abs(laws[-1][0] - MEAN) < 0.005
    assert abs(laws[-1][1] - STD**2) < 0.025 * STD**2


def test_to_pm1_and_back():
    x = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert to_pm1(x).tolist() == [-1, -0.5, 0, 1]
    assert torch.equal(to_01(to_pm1(x)), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clamp", ["plain", "straight_through"])
def test_to_01_is_torch_clamp_forwards(clamp, dtype):
    edges = torch.tensor([-1.0, 1.0, -1 - 1e-7, 1 + 1e-7])
    z = torch.cat([normal(3, 4000) * 3, normal(4, 1000) * 1e3, edges]).to(dtype)
    assert torch.equal(to_01(z, clamp), torch.clamp((z + 1) / 2, 0.0, 1.0))
    assert to_01(z, clamp).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_01_without_a_clamp_lets_the_image_leave_its_range(dtype):
    z = (normal(3, 4000) * 3).to(dtype)
    x = to_01(z, "none")
    assert torch.equal(x, (z + 1) / 2)
    assert x.min() < 0 < 1 < x.max()
    assert torch.equal(x.clamp(0.0, 1.0), to_01(z))


@pytest.mark.parametrize(("clamp", "outside"), [("plain", 0.0), ("straight_through", 1.0), ("none", 1.0)])
def test_to_01_gradient(clamp, outside):
    """Per unit of [0,1], half of that per unit of z; 1 at the bounds themselves, which are float-exact here."""
    z = torch.tensor([-1.0, 1.0, -0.999, 0.3, -1.001, 1.001, -50.0, 50.0], requires_grad=True)
    (g,) = torch.autograd.grad(to_01(z, clamp).sum(), z)
    assert (2 * g).tolist() == [1, 1, 1, 1] + [outside] * 4


def test_to_01_unknown_clamp():
    with pytest.raises(ValueError, match="need clamp among plain, straight_through, none"):
        to_01(torch.zeros(1), "hard")


def test_heun_step_by_hand():
    """Karras et al. 2022, Alg. 1: the mean of the slopes at both ends; to sigma 0 the DDIM step."""
    denoiser, z, sigma, lower = Gaussian(0.1, 0.6), normal(0, 2, 1, 3, 3), 0.8, 0.5

    def slope(z, sigma):
        return (z - denoiser(z, sigma)) / sigma

    predicted = z + (lower - sigma) * slope(z, sigma)
    expected = z + (lower - sigma) * (slope(z, sigma) + slope(predicted, lower)) / 2
    x0, asked = denoiser(z, sigma), denoiser.nfe
    torch.testing.assert_close(heun_step(z, x0, denoiser, sigma, lower), expected)
    assert denoiser.nfe == asked + 1
    torch.testing.assert_close(heun_step(z, x0, denoiser, sigma, 0.0), x0)
    assert denoiser.nfe == asked + 1
    with pytest.raises(AssertionError, match="goes down"):
        heun_step(z, x0, denoiser, lower, sigma)
