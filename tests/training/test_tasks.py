"""Losses with a known minimum, batches with the right distribution, samples with a known spread."""

import pytest
import torch
from torch import Tensor, nn

from dp.diffusion.denoisers import EDM, VE, EpsNet, Gaussian
from dp.diffusion.sampling import LEVELS, vp_sigmas
from dp.subset import Subset
from dp.training import tasks as losses

EDM_LEVELS = {"p_mean": -1.2, "p_std": 1.2, "clamp": None}


class Gain(nn.Module):
    """A network whose output is `scale` x `gains`[label] x its input."""

    def __init__(self, scale: float = 1.0, gains: Tensor | None = None):
        super().__init__()
        self.scale, self.gains = nn.Parameter(torch.tensor(scale)), gains

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return x * self.scale * (1.0 if self.gains is None else self.gains[label].view(-1, 1, 1, 1))


def gaussian_data(n: int, std: float) -> Subset:
    """Images in [0,1] whose pixels are N(0, std^2) in [-1,1]."""
    x = std * torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return Subset(torch.arange(n), (x + 1) / 2, torch.zeros(n, dtype=torch.long))


def eps_gains(std: float) -> Tensor:
    """E[n | z] = sigma / (std^2 + sigma^2) z, per unit of the network's input z / sqrt(1 + sigma^2)."""
    s = vp_sigmas()
    return (s * (1 + s**2).sqrt() / (std**2 + s**2)).float()


@pytest.mark.parametrize(("scale", "extra"), [(0.0, 0.0), (0.5, 0.25), (-1.0, 1.0)])
def test_edm_loss_of_gaussian_data(scale, extra):
    """At std = sigma_data the posterior mean, c_skip z or F = 0, costs 1 at any sigma; F = a c_in z costs 1 + a^2."""
    task = losses.Denoising(EDM(Gain(scale), sigma_data=0.5), gaussian_data(512, 0.5), **EDM_LEVELS)
    batch = task.draw(4096, torch.Generator().manual_seed(0))
    assert task.loss(*batch).item() == pytest.approx(1 + extra, rel=0.01)
    for loss in losses.held_out(task, gaussian_data(2048, 0.5), (0.05, 0.2, 0.8), seed=0).values():
        assert loss == pytest.approx(1 + extra, rel=0.02)


@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_eps_loss_of_gaussian_data(scale):
    """The posterior mean of n leaves std^2 / (std^2 + sigma^2); a share `scale` of it adds the square of what lacks."""
    std, sigmas = 0.5, vp_sigmas()
    total = std**2 + sigmas**2
    expected = (std**2 + (1 - scale) ** 2 * sigmas**2) / total
    task = losses.Denoising(EpsNet(Gain(scale, eps_gains(std))), gaussian_data(512, std), **EDM_LEVELS)
    found = losses.held_out(task, gaussian_data(2048, std), (0.0, 0.1, 0.5, 1.0), seed=0)
    for sigma, loss in found.items():
        k = int((sigmas - sigma).abs().argmin())
        assert loss == pytest.approx(expected[k].item(), rel=0.02)
    x, sigma, n = task.draw(8192, torch.Generator().manual_seed(0))
    assert task.loss(x, sigma, n).item() == pytest.approx(expected.mean().item(), rel=0.1)


def test_eps_loss_is_the_error_of_the_predicted_noise():
    task = losses.Denoising(EpsNet(Gain(0.7)), gaussian_data(16, 0.5), **EDM_LEVELS)
    x, sigma, n = task.draw(16, torch.Generator().manual_seed(0))
    predicted = 0.7 * (x + sigma * n) / (1 + sigma**2).sqrt()
    torch.testing.assert_close(task.loss(x, sigma, n), ((predicted - n) ** 2).mean(), rtol=1e-4, atol=1e-6)


def test_levels_are_those_of_the_papers():
    generator = torch.Generator().manual_seed(0)
    edm = losses.Denoising(EDM(Gain()), gaussian_data(4, 0.5), **EDM_LEVELS).levels(20_000, generator).log()
    assert edm.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert edm.std().item() == pytest.approx(1.2, abs=0.03)
    eps = losses.Denoising(EpsNet(Gain()), gaussian_data(4, 0.5), **EDM_LEVELS).levels(20_000, generator)
    index = torch.searchsorted(vp_sigmas().float(), eps.flatten())
    assert index.float().mean().item() == pytest.approx((LEVELS - 1) / 2, abs=10)


def test_other_adapters_are_refused():
    with pytest.raises(ValueError, match="need an EDM or EpsNet adapter to train in, got VE"):
        losses.Denoising(VE(Gain()), gaussian_data(4, 0.5), **EDM_LEVELS)


def test_shift_and_flip():
    x, generator = torch.rand(200, 2, 5, 7), torch.Generator().manual_seed(0)
    assert torch.equal(losses.shift(x, generator, reach=0, mode="constant"), x)
    moved = losses.shift(x, generator, reach=2, mode="constant")
    corners = [nn.functional.pad(x, [2] * 4)[:, :, dy : dy + 5, dx : dx + 7] for dy in range(5) for dx in range(5)]
    hits = torch.stack([(moved == corner).flatten(1).all(1) for corner in corners])
    assert hits.any(0).all()
    assert hits.any(1).all()  # every shift occurs
    mirrored = losses.flip(x, generator)
    same, other = (mirrored == x).flatten(1).all(1), (mirrored == x.flip(3)).flatten(1).all(1)
    assert (same ^ other).all()
    assert 60 < other.sum() < 140


def test_samples_have_the_spread_of_the_data():
    """Around the exact denoiser of N(0, .5^2) the deterministic path ends with that spread."""
    drawn = losses.samples(Around(), (64, 1, 8, 8), t=1.0, steps=200, seed=0)
    assert drawn.std().item() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(drawn, losses.samples(Around(), (64, 1, 8, 8), t=1.0, steps=200, seed=0))


class Around(Gaussian):
    """`Gaussian` with a parameter, which tells the device."""

    def __init__(self):
        super().__init__()
        self.here = nn.Parameter(torch.zeros(1))


def test_grid_of_images():
    x = torch.rand(6, 1, 4, 5)
    picture = losses.grid(x, columns=3, times=2)
    assert picture.shape == (2 * 5 * 2, 3 * 6 * 2, 3)
    assert torch.equal(picture[10:18:2, 12:22:2, 0], x[4, 0])
    assert (picture[8:10] == 1).all()
