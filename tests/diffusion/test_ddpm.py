"""DDPM's step and variances against the formulas of the papers in their own coordinates, and the learned variance."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from dp.diffusion import ddpm
from dp.diffusion.denoisers import EDM, IDDPM, EpsNet
from dp.diffusion.sampling import vp_sigmas


@pytest.mark.parametrize(("k", "j"), [(1, 0), (150, 149), (999, 998), (200, 150)])
def test_mean_and_variances_are_the_papers(k, j):
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)
    beta = 1 - abar[k] / abar[j]  # of the step from j to k; betas[k] between neighbors
    tilde = (1 - abar[j]) / (1 - abar[k]) * beta
    sigma, sigma_next = (vp_sigmas()[i].item() for i in (k, j))
    assert ddpm.large_variance(sigma, sigma_next) * abar[j].item() == pytest.approx(beta.item(), rel=1e-10)
    assert ddpm.small_variance(sigma, sigma_next) * abar[j].item() == pytest.approx(tilde.item(), rel=1e-10)
    x, x0 = torch.randn(2, 1, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = abar[j].sqrt() * beta / (1 - abar[k]) * x0 + (1 - beta).sqrt() * (1 - abar[j]) / (1 - abar[k]) * x
    ours = ddpm.posterior_mean(x / abar[k].sqrt(), x0, sigma, sigma_next) * abar[j].sqrt()
    torch.testing.assert_close(ours, mean, rtol=1e-10, atol=1e-12)


def test_learned_variance_lies_between_the_fixed_ones():
    u = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    found = ddpm.learned_variance(u, 0.09, 0.01)
    torch.testing.assert_close(found, torch.tensor([0.01, 0.03, 0.09], dtype=torch.float64))


def test_variances_of_a_chain():
    """A chain of two steps and the one to the clean image: betas and posterior variances in the papers' units."""
    sigmas = [*(vp_sigmas()[k].item() for k in (20, 10, 0)), 0.0]
    abar = [1 / (1 + sigma**2) for sigma in sigmas]
    beta = [1 - a / b for a, b in pairwise(abar)]
    tilde = [(1 - b) / (1 - a) * beta for (a, b), beta in zip(pairwise(abar), beta, strict=True)]
    wanted = {
        "small": [(tilde[0], tilde[0]), (tilde[1], tilde[1]), (0.0, 0.0)],
        "large": [(beta[0], beta[0]), (beta[1], beta[1]), (tilde[1], tilde[1])],
        "learned": [(tilde[0], beta[0]), (tilde[1], beta[1]), (tilde[1], beta[2])],
    }
    for variance, bounds in wanted.items():
        found = ddpm.variance_bounds(sigmas, variance)
        for one, pair, a in zip(found, bounds, abar[1:], strict=True):
            assert [v * a for v in one] == pytest.approx(pair, rel=1e-10)
    with pytest.raises(ValueError, match="need variance among small, large, learned, got variance='none'"):
        ddpm.variance_bounds(sigmas, "none")
    with pytest.raises(ValueError, match="need at least 2 steps for variance=large, got 1"):
        ddpm.variance_bounds(sigmas[-2:], "large")


class Six(nn.Module):
    """A network whose further channels are a constant."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, x, label):
        return torch.cat([0.5 * x, torch.full((len(x), self.channels, *x.shape[2:]), 0.25).to(x)], dim=1)


@pytest.mark.parametrize("adapter", [EpsNet, IDDPM])
def test_with_variance_is_one_evaluation(adapter):
    denoiser, z = adapter(Six(3)), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x0, u = denoiser.with_variance(z, 0.7)
    assert denoiser.nfe == 1
    assert torch.equal(x0, denoiser(z, 0.7))
    assert torch.equal(u, torch.full_like(z, 0.25))
    with pytest.raises(ValueError, match="need a network with learned variance, got 0 channels beyond the 3"):
        adapter(Six(0)).with_variance(z, 0.7)
    with pytest.raises(ValueError, match="need a noise predictor with learned variance, got EDM"):
        EDM(Six(0)).with_variance(z, 0.7)
