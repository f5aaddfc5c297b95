"""Losses with a known minimum, batches with the right distribution, samples with a known spread."""

import pytest
import torch
from torch import Tensor, nn

from dp.diffusion.denoisers import EDM, VE, EpsNet, Gaussian
from dp.diffusion.sampling import LEVELS, to_pm1, vp_sigmas
from dp.nets.blocks import ClassConditional
from dp.subset import Subset
from dp.training.augment import flip, shift
from dp.training.outputs import grid
from dp.training.tasks import denoising as losses

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


class GainOfClass(ClassConditional):
    """A network whose output is gains[label] x its input, and gains[-1] x it without a class."""

    def __init__(self, gains):
        super().__init__()
        self.classes, self.gains = len(gains) - 1, nn.Parameter(torch.tensor(gains))

    def forward(self, x, noise, label=None):
        label = torch.full((len(x),), -1) if label is None else label
        return x * self.gains[label].view(-1, 1, 1, 1)


def classed_data(n: int) -> Subset:
    """Gaussian images of two classes in turn; the first pixel tells the class."""
    subset, y = gaussian_data(n, 0.5), torch.arange(n) % 2
    subset.x[:, 0, 0, 0] = y.float()
    return Subset(subset.ids, subset.x, y)


def test_a_network_with_classes_gets_the_class_of_each_image_or_none():
    task = losses.Denoising(EDM(GainOfClass([0.0, 0.0, 0.0])), classed_data(64), **EDM_LEVELS, label_dropout=0.25)
    x, _, _, label = task.draw(4000, torch.Generator().manual_seed(0))
    kept = label >= 0
    assert torch.equal((x[kept, 0, 0, 0] > 0).long(), label[kept])
    assert set(label.tolist()) == {-1, 0, 1}
    assert (~kept).float().mean().item() == pytest.approx(0.25, abs=0.03)
    plain = losses.Denoising(EDM(Gain()), classed_data(64), **EDM_LEVELS)
    for with_classes, without in zip(
        task.draw(16, torch.Generator().manual_seed(1)), plain.draw(16, torch.Generator().manual_seed(1)), strict=False
    ):
        assert torch.equal(with_classes, without)  # labels are drawn last


def test_the_loss_is_that_of_each_images_class():
    """Where F = a_c c_in z, Gaussian data of std = sigma_data cost 1 + a_c^2; held-out images have their own class."""
    task = losses.Denoising(EDM(GainOfClass([0.0, 1.0, 2.0])), gaussian_data(4, 0.5), **EDM_LEVELS)
    data = gaussian_data(4096, 0.5)
    for label, cost in ((0, 1), (1, 2), (-1, 5)):
        batch = to_pm1(data.x), torch.full((4096, 1, 1, 1), 0.4), torch.randn(data.x.shape)
        assert task.loss(*batch, torch.full((4096,), label)).item() == pytest.approx(cost, rel=0.02)
    halves = Subset(data.ids, data.x, torch.arange(4096) % 2)
    assert losses.held_out(task, halves, (0.2,), seed=0).popitem()[1] == pytest.approx(1.5, rel=0.02)


def test_label_dropout_needs_classes():
    for network, share in ((Gain(), 0.1), (GainOfClass([0.0, 0.0]), 1.0)):
        with pytest.raises(ValueError, match="label_dropout"):
            losses.Denoising(EDM(network), classed_data(4), **EDM_LEVELS, label_dropout=share)


def test_samples_of_a_network_with_classes_are_of_each_in_turn():
    """F = 0 draws the samples of N(0, .5^2); another gain for one class changes that class alone."""
    plain, other = (
        losses.samples(EDM(GainOfClass([0.0, gain, 0.0])), (6, 1, 8, 8), t=0.5, steps=5, seed=0) for gain in (0.0, 0.3)
    )
    changed = (plain - other).abs().amax((1, 2, 3)) > 1e-3
    assert changed.tolist() == [False, True] * 3


def test_other_adapters_are_refused():
    with pytest.raises(ValueError, match="need an EDM or EpsNet adapter to train in, got VE"):
        losses.Denoising(VE(Gain()), gaussian_data(4, 0.5), **EDM_LEVELS)


def test_shift_and_flip():
    x, generator = torch.rand(200, 2, 5, 7), torch.Generator().manual_seed(0)
    assert torch.equal(shift(x, generator, reach=0, mode="constant"), x)
    moved = shift(x, generator, reach=2, mode="constant")
    corners = [nn.functional.pad(x, [2] * 4)[:, :, dy : dy + 5, dx : dx + 7] for dy in range(5) for dx in range(5)]
    hits = torch.stack([(moved == corner).flatten(1).all(1) for corner in corners])
    assert hits.any(0).all()
    assert hits.any(1).all()  # every shift occurs
    mirrored = flip(x, generator)
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
    picture = grid(x, columns=3, times=2)
    assert picture.shape == (2 * 5 * 2, 3 * 6 * 2, 3)
    assert torch.equal(picture[10:18:2, 12:22:2, 0], x[4, 0])
    assert (picture[8:10] == 1).all()


def test_white_images_fill_the_last_row():
    x = torch.rand(5, 1, 4, 4)
    picture = grid(x, columns=3, times=1)
    assert picture.shape == (2 * 5, 3 * 5, 3)
    assert torch.equal(picture[5:9, 5:9, 0], x[4, 0])
    assert (picture[5:, 10:] == 1).all()
