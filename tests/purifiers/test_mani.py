"""MANI-Pure in our reading: the weights by loops, the power of the noise, and the limits in which it is FreqPure."""

import math

import pytest
import torch

from dp.diffusion.denoisers import Gaussian
from dp.purifiers import freqpure, mani
from dp.rng import Streams

CHAIN = {"rounds": [[400, 5], [100, 2]], "radius": 2, "guide": 50, "eta": 1.0}
BANDS = {"bands": 4, "gamma": 1.8, "floor": 1e-6}


def image(n: int = 2, channels: int = 2) -> torch.Tensor:
    return torch.rand(n, channels, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def noise(x: torch.Tensor) -> torch.Tensor:
    return Streams(range(len(x)), 0, "n").randn_like(x)


def rings(height: int, width: int, bands: int) -> list[list[tuple[int, int]]]:
    """The (u, v) of each ring, by loops."""
    found = [[] for _ in range(bands)]
    top = math.hypot(height // 2, width // 2)
    for u in range(height):
        for v in range(width):
            length = math.hypot(min(u, height - u), min(v, width - v))
            found[min(int(bands * length / top), bands - 1)].append((u, v))
    return found


def test_the_weights_by_loops():
    magnitude = torch.fft.fft2(image()).abs()
    found = mani.band_weights(magnitude, **BANDS)
    wanted = torch.zeros_like(found)
    for b in range(2):
        for c in range(2):
            for ring in rings(8, 6, 4):
                mean = sum(magnitude[b, c, u, v].item() for u, v in ring) / len(ring)
                for u, v in ring:
                    wanted[b, c, u, v] = 1 / (mean**1.8 + 1e-6)
        wanted[b] /= wanted[b].max()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bands", [1, 4, 40])
def test_bands_of_equal_weight_give_freqpure(bands):
    """Where the weights act on the noise's spectrum: with one band and one channel, or with gamma = 0."""
    x = image(channels=1)
    gamma = 1.8 if bands == 1 else 0.0
    given = {"form": "spectral", "bands": bands, "gamma": gamma, "floor": 1e-6}
    out = mani.purify(x, Gaussian(), None, Streams([0, 1], 0, "a"), **given, **CHAIN)
    plain = freqpure.purify(x, Gaussian(), None, Streams([0, 1], 0, "a"), **CHAIN)
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-9)


def test_a_map_over_a_flat_image_is_flat_and_gives_freqpure():
    x = torch.full((2, 1, 8, 6), 0.4, dtype=torch.float64)
    one_round = {**CHAIN, "rounds": [[400, 5]]}
    out = mani.purify(x, Gaussian(), None, Streams([0, 1], 0, "a"), form="spatial", **BANDS, **one_round)
    plain = freqpure.purify(x, Gaussian(), None, Streams([0, 1], 0, "a"), **one_round)
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["spatial", "spectral"])
def test_the_noise_has_unit_power_on_average_over_an_image(form):
    x = image(1).expand(4000, 2, 8, 6)
    n = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    power = mani.adapted(2 * x - 1, n, form=form, **BANDS).square().mean().item()
    assert power == pytest.approx(1.0, abs=0.02)


def test_bands_of_small_magnitude_get_more_noise():
    """A smooth image has less magnitude at high frequencies; the power of the noise of each ring is that of w^2."""
    rows = torch.linspace(0, 3, 8, dtype=torch.float64)[:, None]
    x = ((rows + torch.linspace(0, 2, 6, dtype=torch.float64)).sin() * 0.3 + 0.5 + 0.01 * image(1, 1)[0, 0])[None, None]
    n = torch.randn(4000, 1, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = {**BANDS, "gamma": 0.5}  # so that all rings have a power to speak of
    out = mani.adapted((2 * x - 1).expand_as(n), n, form="spectral", **given)
    power = torch.fft.fft2(out).abs().square().mean(dim=0)[0]
    magnitude = torch.fft.fft2(x).abs()[0, 0]
    squares = []
    for ring in rings(8, 6, 4):
        u, v = (list(index) for index in zip(*ring, strict=True))
        squares.append((power[u, v].mean() * (magnitude[u, v].mean() ** 0.5 + 1e-6) ** 2).item())
    assert squares == pytest.approx([squares[0]] * 4, rel=0.1)
    assert magnitude[rings(8, 6, 4)[0][0]] > 10 * magnitude[rings(8, 6, 4)[3][0]]


def test_the_map_is_strong_where_the_image_has_detail():
    """White texture on the left, a constant on the right."""
    x = torch.full((1, 1, 16, 16), 0.5, dtype=torch.float64)
    x[..., :8] += 0.2 * torch.randn(16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = mani.adapted(2 * x - 1, torch.ones_like(x), form="spatial", bands=8, gamma=1.8, floor=1e-6).square()
    assert scale[..., :8].mean() > 3 * scale[..., 8:].mean()


@pytest.mark.parametrize("form", ["spatial", "spectral"])
def test_the_gradient_of_the_noise_is_exact_and_an_image_stands_alone(form):
    x = 2 * image() - 1
    n = noise(x)
    given = {"form": form, **BANDS}
    assert torch.autograd.gradcheck(lambda x: mani.adapted(x, n, **given), x.clone().requires_grad_(), fast_mode=True)
    together = mani.adapted(torch.cat([x[:1], -x[1:]]), n, **given)
    torch.testing.assert_close(together[0], mani.adapted(x[:1], n[:1], **given)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["spatial", "spectral"])
def test_an_image_of_zeros_has_finite_noise_and_gradient(form):
    leaf = torch.full((1, 1, 8, 6), -1.0, requires_grad=True)
    out = mani.adapted(leaf, torch.ones(1, 1, 8, 6), form=form, **BANDS)
    (slope,) = torch.autograd.grad(out.sum(), leaf)
    assert out.isfinite().all()
    assert slope.isfinite().all()


@pytest.mark.parametrize(
    "wrong", [{"form": "flat"}, {"bands": 0}, {"gamma": -1.0}, {"floor": 0.0}, {"rounds": []}, {"guide": 1000}]
)
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match=r"^need "):
        mani.purify(
            image(), Gaussian(), None, Streams([0, 1], 0, "a"), **{"form": "spatial", **BANDS, **CHAIN, **wrong}
        )  # fmt: skip
