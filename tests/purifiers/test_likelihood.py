"""Likelihood maximization against the original code, Adam against torch's, and its gradient variants."""

import functools

import pytest
import torch

from dp.adam import adam_step
from dp.diffusion.denoisers import Gaussian
from dp.purifiers import likelihood
from dp.rng import Streams
from tests.helpers.parity import OURS, Recorded, Script, of

GIVEN = {"low": 0.4, "high": 0.6, "steps": 3, "lr": 0.1}


def image(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2


@of("likelihood")
def test_the_original_code_gives_the_same(path):
    """Its loss is a mean over the batch, which only Adam's small constant feels: share = 1/B."""
    file = Recorded(path)
    given = {key: file.settings[key] for key in ("low", "high", "steps", "lr")}
    script = Script(file["draws"], file["uniforms"])
    denoiser = file.denoiser()
    with torch.no_grad():
        x_hat = likelihood.purify(file["x"], denoiser, None, script, **given, share=1 / len(file["x"]))
    assert (x_hat - file["x_hat"]).abs().max() < 1e-5 * file["x_hat"].abs().max()
    assert script.left == 0
    assert denoiser.nfe == given["steps"]


def test_adam_is_torchs():
    """Ten steps on a quartic, with gradients of very different sizes."""
    scale = torch.logspace(-6, 2, 9, dtype=torch.float64)
    theirs = torch.nn.Parameter(torch.linspace(-2, 3, 9, dtype=torch.float64))
    optimizer = torch.optim.Adam([theirs], lr=0.05)
    z, m, v = theirs.detach().clone(), *torch.zeros(2, 9, dtype=torch.float64)
    for count in range(1, 11):
        optimizer.zero_grad()
        (scale * theirs**4).sum().backward()
        optimizer.step()
        z, m, v = adam_step(z, 4 * scale * z**3, m, v, count, 0.05)
    torch.testing.assert_close(z, theirs.detach(), rtol=1e-9, atol=1e-12)


def test_adam_has_a_derivative_at_a_gradient_of_zero():
    g = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    z, _, _ = adam_step(torch.ones(3, dtype=torch.float64), g, torch.zeros(3), torch.zeros(3), 1, 0.1)
    (slope,) = torch.autograd.grad(z.sum(), g)
    assert torch.isfinite(slope).all()
    assert (slope < -1e6).all()


def test_one_step_by_hand():
    """With x0 ~ N(mean, std^2) the error is ((gain - 1)(z - mean) + gain sigma n)^2; Adam's first step is its sign."""
    mean, std, x = 0.1, 0.3, image()
    n = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u = torch.tensor([0.25, 0.75])
    sigma = (0.4 + 0.2 * u.double()).view(-1, 1, 1, 1)
    gain = std**2 / (std**2 + sigma**2)
    z = 2 * x - 1
    g = 2 / 16 * (gain - 1) * ((gain - 1) * (z - mean) + gain * sigma * n)
    expected = ((z - 0.1 * g / (g.abs() + 1e-8)) + 1) / 2
    given = {**GIVEN, "steps": 1, "clamp": "none"}
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            leaf = x.clone().requires_grad_(grad)
            out = likelihood.purify(leaf, Gaussian(mean, std), None, Script([n], [u]), **given)
            torch.testing.assert_close(out.detach(), expected, rtol=0, atol=1e-9)


def test_many_small_steps_end_where_the_expected_error_is_least():
    """For Gaussian data the expected error has its minimum at the mean."""
    given = {"low": 0.5, "high": 0.5, "steps": 150, "lr": 0.02, "clamp": "none"}
    with torch.no_grad():
        out = likelihood.purify(image(64), Gaussian(0.1, 0.3), None, Streams(range(64), 0, "a"), **given)
    assert (2 * out - 1).mean().item() == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_values_are_equal_in_all_gradient_variants_and_without_autograd(memory):
    file = Recorded(OURS / "lm.safetensors")
    x, slopes = file["x"] * 0.9 + 0.05, {}
    given = {key: file.settings[key] for key in ("low", "high", "steps", "lr")}
    given["clamp"] = "none"
    denoiser = file.denoiser()
    denoiser.memory = memory
    run = functools.partial(likelihood.purify, denoiser=denoiser, classifier=None, **given)
    with torch.no_grad():
        plain = run(x, rng=Streams(range(3), 0, "a"))
    for derivative in ("exact", "constant_net", "identity"):
        leaf = x.clone().requires_grad_()
        out = run(leaf, rng=Streams(range(3), 0, "a"), derivative=derivative)
        assert torch.equal(out.detach(), plain)
        slopes[derivative] = torch.autograd.grad(out.sum(), leaf)[0]
    assert torch.equal(slopes["identity"], torch.ones_like(x))
    assert (slopes["exact"] - slopes["constant_net"]).abs().max() > 1e-6
    assert (slopes["exact"] - 1).abs().max() > 1e-6


def test_constant_net_takes_the_gradient_for_the_one_without_the_networks_derivative():
    """By hand for one step, z - lr g / (root + 1e-8) with root = sqrt(g^2 + 1e-20).

    For Gaussian data g = 2 (gain - 1)^2 (z - mean) / pixels, and it is taken for 2 (1 - gain) (z - mean) / pixels.
    """
    x, mean, std = image(1), 0.1, 0.3
    n = torch.zeros_like(x)
    given = {**GIVEN, "steps": 1, "lr": 1e-6, "clamp": "none", "share": 1e-6, "derivative": "constant_net"}
    leaf = x.clone().requires_grad_()
    out = likelihood.purify(leaf, Gaussian(mean, std), None, Script([n], [torch.tensor([0.5])]), **given)
    (slope,) = torch.autograd.grad(out.sum(), leaf)
    gain = std**2 / (std**2 + 0.25)
    g = 1e-6 * 2 / 16 * (gain - 1) ** 2 * (2 * x - 1 - mean)
    root = (g**2 + 1e-20).sqrt()
    rate = 1 / (root + 1e-8) - g**2 / (root * (root + 1e-8) ** 2)
    torch.testing.assert_close(1 - slope, 1e-6 * 1e-6 * (2 / 16) * (1 - gain) * rate, rtol=1e-6, atol=1e-12)
    assert (1 - slope).abs().max() > 1e-7


@pytest.mark.parametrize("wrong", [{"low": 0.0}, {"high": 0.3}, {"steps": -1}, {"lr": 0.0}, {"derivative": "bpda"}])
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match=r"^need "):
        likelihood.purify(image(), Gaussian(), None, Streams([0, 1], 0, "a"), **{**GIVEN, **wrong})
