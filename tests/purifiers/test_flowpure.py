"""FlowPure on the exact flow of Gaussian data, and its network's adapter."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from dp.diffusion.denoisers import Consistency, Gaussian
from dp.diffusion.flow import Flow
from dp.nets.small_unet import SmallUNet
from dp.purifiers import diffpure, flowpure
from dp.rng import Streams
from tests.helpers.parity import Script

GIVEN = {"pixel_sigma": 0.4, "t_start": 0.25, "steps": 4, "clamp": "none"}
MEAN, STD = 0.1, 0.3


def image() -> torch.Tensor:
    return torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Velocity(nn.Module):
    """-high E[n | z] of N(MEAN, STD^2) on the flow from the noise level `high`."""

    def __init__(self, high: float):
        super().__init__()
        self.high = high

    def forward(self, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = (1 - t.view(-1, 1, 1, 1)) * self.high
        return -self.high * sigma / (STD**2 + sigma**2) * (z - MEAN)


def test_many_steps_follow_the_exact_flow():
    """The flow of Gaussian data shrinks z - mean by std / sqrt(std^2 + sigma^2), sigma that of the start."""
    x, n = image(), torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = 2 * flowpure.purify(x, Gaussian(MEAN, STD), None, Script([n]), **{**GIVEN, "steps": 1000}) - 1
    sigma = 2 * 0.4 * 0.75
    expected = MEAN + STD / (STD**2 + sigma**2) ** 0.5 * (2 * x - 1 + sigma * n - MEAN)
    torch.testing.assert_close(z, expected, rtol=0, atol=4e-3)


def test_steps_are_those_of_eulers_method():
    """z <- z + h v, in time from t_start to 1, with the velocity of the flow."""
    x, n, flow = image(), torch.zeros(2, 1, 4, 4, dtype=torch.float64), Velocity(0.8)
    denoiser = Flow(flow, high=0.8)
    z = 2 * x - 1
    for t, t_next in pairwise([0.25 + 0.75 * k / 4 for k in range(5)]):
        z = z + (t_next - t) * flow(z, torch.tensor([t], dtype=torch.float64))
    found = 2 * flowpure.purify(x, denoiser, None, Script([n]), **GIVEN) - 1
    torch.testing.assert_close(found, z, rtol=0, atol=1e-12)
    assert denoiser.nfe == 4


def test_any_denoiser_gives_the_flow():
    """The adapter of the exact velocity is the exact denoiser, whatever the noise at its start."""
    for high in (0.8, 1.3):
        outs = [
            flowpure.purify(image(), denoiser, None, Streams([0, 1], 0, "a"), **GIVEN)
            for denoiser in (Flow(Velocity(high), high), Gaussian(MEAN, STD))
        ]
        torch.testing.assert_close(*outs, rtol=0, atol=1e-12)


def test_a_consistency_model_is_refused():
    """It gives the end of the flow, not the posterior mean. Without its boundary the adapter is that of EDM."""
    with pytest.raises(ValueError, match="need a denoiser that is a posterior mean, got a consistency model"):
        flowpure.purify(image(), Consistency(nn.Identity()), None, Streams([0, 1], 0, "a"), **GIVEN)
    edm = Consistency(SmallUNet(1, 8, 8, 8), boundary=False)
    assert flowpure.purify(image().float(), edm, None, Streams([0, 1], 0, "a"), **GIVEN).isfinite().all()


def test_one_step_from_the_start_is_one_shot_denoising():
    given = {"pixel_sigma": 0.4, "clamp": "plain"}
    out = flowpure.purify(image(), Gaussian(), None, Streams([0, 1], 0, "a"), **given, t_start=0.0, steps=1)
    shot = {"t": None, "steps": 1, "eta": 0.0}
    assert torch.equal(out, diffpure.purify(image(), Gaussian(), None, Streams([0, 1], 0, "a"), **given, **shot))


def test_the_adapter_takes_a_level_for_each_image_and_levels_above_its_own():
    denoiser, z = Flow(Velocity(0.8), 0.8), image()
    both = denoiser(z, torch.tensor([0.2, 0.6], dtype=torch.float64).view(-1, 1, 1, 1))
    for k, sigma in enumerate((0.2, 0.6)):
        torch.testing.assert_close(both[k : k + 1], denoiser(z[k : k + 1], sigma))
    torch.testing.assert_close(denoiser(z, 1.6), z + 2 * Velocity(0.8)(z, torch.zeros(1, dtype=torch.float64)))
    with pytest.raises(ValueError, match="need high > 0"):
        Flow(Velocity(0.8), 0.0)


@pytest.mark.parametrize("wrong", [{"pixel_sigma": 0.0}, {"t_start": 1.0}, {"t_start": -0.1}, {"steps": 0}])
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match=r"^need pixel_sigma > 0"):
        flowpure.purify(image(), Gaussian(), None, Streams([0, 1], 0, "a"), **{**GIVEN, **wrong})
