"""ADP against the original code, closed forms for Gaussian data, and what the score of one image does to another."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from dp.purifiers.adp import Adp
from dp.rng import Streams
from tests.helpers.parity import Recorded, Script, of

GIVEN = {"pixel_sigma": 0.05, "steps": 6, "probe": 1e-3, "lam": 0.05, "bounds": [1e-5, 0.1], "stop": 1e-3}


def image(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3


def streams(n: int = 2) -> Streams:
    return Streams(range(n), 0, "a")


class Tiny(nn.Module):
    """The file's score network."""

    def __init__(self, file: Recorded):
        super().__init__()
        width, channels = file["net.0.weight"].shape[:2]
        self.net = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.ELU(), nn.Conv2d(width, channels, 3, padding=1)
        ).to(file.dtype)
        self.net.load_state_dict({k[4:]: v for k, v in file.tensors.items() if k.startswith("net.")})

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        return self.net(2 * v - 1)


class Pull(nn.Module):
    """The score, times its noise level, of Gaussian data: rates * (mean - v), with one rate for each pixel."""

    def __init__(self, mean: float, rates: float | torch.Tensor):
        super().__init__()
        self.mean, self.rates = mean, rates

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        return self.rates * (self.mean - v)


def recorded(file: Recorded) -> Adp:
    said = file.settings
    given = {"pixel_sigma": said["sigma"], "steps": said["max_iter"], "probe": said["delta"]}
    return Adp(Tiny(file), **given, lam=said["lam"], bounds=GIVEN["bounds"], stop=said["stop"])


def back(v: torch.Tensor, times: int = 1) -> torch.Tensor:
    """The original's map from the middle of 8-bit cells, with its clip."""
    for _ in range(times):
        v = (v * (256 / 255) - 1 / 510).clamp(0, 1)
    return v


@of("adp")
def test_the_original_code_gives_the_same_until_an_image_is_frozen(path):
    """Its frozen images are mapped on by the steps of the others (deviation 114); with this the outputs agree, too."""
    file, seen = Recorded(path), []
    purifier, states, sizes = recorded(file), file["states"], file["steps"]
    x_hat = purifier(file["x"], None, None, Script([file["draw.0"]]), on_step=lambda *step: seen.append(step[2:]))
    frozen = (sizes > 0).sum(dim=0).tolist()  # the step at which each image is frozen
    assert len(set(frozen)) > 1
    assert max(frozen) < file.settings["max_iter"]  # the last ones end the original's loop
    for k, (z, after) in enumerate(seen[: len(sizes)]):
        score = purifier.net((z + 1) / 2)
        found = purifier.step_size(score, purifier.net((z + 1) / 2 + purifier.probe * score)).flatten()
        for b, last in enumerate(frozen):
            if k < last:
                assert abs(found[b] - sizes[k, b]) < 1e-9 * sizes.max()
                assert ((z[b] + 1) / 2 - states[k, b]).abs().max() < 1e-9
                assert ((after[b] + 1) / 2 - states[k + 1, b]).abs().max() < 1e-9
    for b, last in enumerate(frozen):
        assert (x_hat[b] - states[last, b]).abs().max() < 1e-9
        assert (back(x_hat[b], len(sizes) - last) - file["output"][b]).abs().max() < 1e-9
    assert purifier.nfe == 2 * file.settings["max_iter"]


@of("adp")
def test_an_image_is_the_same_alone_and_beside_others(path):
    file = Recorded(path)
    together = recorded(file)(file["x"], None, None, Script([file["draw.0"]]))
    for b in range(len(file["x"])):
        alone = recorded(file)(file["x"][b : b + 1], None, None, Script([file["draw.0"][b : b + 1]]))
        assert (alone - together[b]).abs().max() < 1e-12


@of("adp")
def test_the_derivative_equals_central_differences(path):
    """Through the noise, every step with its size, the clips and the freezing of the original's network."""
    file = Recorded(path)
    purifier, w = recorded(file), torch.linspace(-1, 1, file["x"].numel(), dtype=torch.float64).view_as(file["x"])

    def run(x: torch.Tensor) -> torch.Tensor:
        return (w * purifier(x, None, None, Script([file["draw.0"]]))).sum()

    leaf = file["x"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(run(leaf), leaf)
    along = torch.randn(leaf.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        central = (run(leaf + 1e-7 * along) - run(leaf - 1e-7 * along)) / 2e-7
    assert (gradient * along).sum().item() == pytest.approx(central.item(), rel=1e-6)


def test_for_gaussian_data_of_one_variance_every_step_has_the_size_lam():
    """1 - r is then probe, so that v <- v + lam (mean - v), whatever the scale of the network's output."""
    x, n, shrink = image(), torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64), 0.05
    expected = (x + 0.05 * n) * (255 / 256) + 1 / 512
    for _ in range(6):
        expected = (expected + shrink * (0.4 - expected)) * (256 / 255) - 1 / 510
    leaf = x.clone().requires_grad_()
    out = Adp(Pull(0.4, 1.0), **GIVEN)(leaf, None, None, Script([n]))
    torch.testing.assert_close(out.detach(), expected, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(out.sum(), leaf)
    slope = 255 / 256 * (0.95 * 256 / 255) ** 6  # of the affine map; the size of a step does not change with x
    torch.testing.assert_close(gradient, torch.full_like(x, slope), rtol=0, atol=1e-10)


def test_the_size_of_a_step_is_lam_over_the_curvature_along_the_score():
    """For several variances it is lam <g, g> / <g, rates g>, until the largest one."""
    rates = torch.linspace(1.0, 4.0, 16, dtype=torch.float64).view(1, 1, 4, 4)
    pull, v = Pull(0.4, rates), image()
    g = pull(v)
    found = Adp(pull, **GIVEN).step_size(g, pull(v + 1e-3 * g))
    expected = 0.05 * g.square().sum(dim=(1, 2, 3)) / (g * rates * g).sum(dim=(1, 2, 3))
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-10, atol=0)
    flat = Pull(0.4, 0.1 * rates)
    g = flat(v)
    assert torch.equal(Adp(flat, **GIVEN).step_size(g, flat(v + 1e-3 * g)), torch.full_like(found, 0.1))


@pytest.mark.parametrize("rates", [-1.0, 0.0], ids=["rising", "zero"])
def test_a_score_that_does_not_fall_freezes_the_image_at_once(rates):
    leaf = image().requires_grad_()
    out = Adp(Pull(0.4, rates), **GIVEN)(leaf, None, None, Script([torch.zeros_like(leaf)]))
    torch.testing.assert_close(out.detach(), leaf.detach() * (255 / 256) + 1 / 512)
    (gradient,) = torch.autograd.grad(out.sum(), leaf)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 255 / 256))


def test_on_step_sees_the_image_before_and_after_every_step():
    seen = []
    out = Adp(Pull(0.4, 1.0), **GIVEN)(image(), None, None, streams(), on_step=lambda *step: seen.append(step))
    assert [(i, sigma) for i, sigma, _, _ in seen] == [(i, 0.1) for i in range(6)]
    assert all(torch.equal(before[3], after[2]) for before, after in pairwise(seen))
    torch.testing.assert_close((seen[-1][3] + 1) / 2, out)


@pytest.mark.parametrize(
    "wrong",
    [{"pixel_sigma": -0.1}, {"steps": 0}, {"probe": 0.0}, {"lam": 0.0}, {"bounds": [0.1, 0.01]}, {"bounds": [0.1]}],
)
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match=r"^need "):
        Adp(Pull(0.4, 1.0), **{**GIVEN, **wrong})
