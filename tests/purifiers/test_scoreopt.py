"""Score-based optimization against the original code, closed forms, and its gradient variants."""

import functools

import pytest
import torch

from dp.diffusion.denoisers import Gaussian
from dp.purifiers import diffpure, likelihood, scoreopt
from dp.rng import Streams
from tests.helpers.parity import Recorded, Script, of

X0 = {"form": "x0", "level": 0.25, "spread": 0.1, "steps": 3, "lr": 0.05}
XT = {**X0, "form": "xt", "spread": 0.0}


def image(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2


@of("scoreopt")
def test_the_original_code_gives_the_same(path):
    """Its loss is a mean over the batch, which only Adam's small constant feels: share = 1/B."""
    file = Recorded(path)
    said = file.settings
    form = "x0" if len(file["uniforms"]) else "xt"
    spread = (said["high"] - said["low"]) / 2 if form == "x0" else 0.0
    given = {"form": form, "level": said["t"], "spread": spread, "steps": said["steps"], "lr": said["lr"]}
    script, denoiser = Script(file["draws"], file["uniforms"]), file.denoiser()
    with torch.no_grad():
        x_hat = scoreopt.purify(file["x"], denoiser, None, script, **given, share=1 / len(file["x"]))
    assert (x_hat - file["x_hat"]).abs().max() < 1e-5 * file["x_hat"].abs().max()
    assert script.left == 0
    assert denoiser.nfe == said["steps"] + (form == "xt")


def test_form_x0_is_likelihood_maximization_around_its_level():
    out = scoreopt.purify(image(), Gaussian(), None, Streams([0, 1], 0, "a"), **X0)
    given = {"low": 0.25 - 0.1, "high": 0.25 + 0.1, "steps": 3, "lr": 0.05}
    assert torch.equal(out, likelihood.purify(image(), Gaussian(), None, Streams([0, 1], 0, "a"), **given))


def test_form_xt_without_a_step_is_one_denoising():
    """`diffpure` with one step from the time of this level."""
    denoiser = Gaussian(0.1, 0.3)
    given = {**XT, "level": denoiser.sigma(0.1), "steps": 0}
    out = scoreopt.purify(image(), denoiser, None, Streams([0, 1], 0, "a"), **given)
    same = diffpure.purify(image(), denoiser, None, Streams([0, 1], 0, "a"), t=0.1, steps=1, eta=0.0)
    assert torch.equal(out, same)
    assert denoiser.nfe == 2


def test_form_xt_ends_where_the_predicted_noise_is_the_one_that_was_added():
    """For Gaussian data (z - D(z)) / level = n has the solution z = mean + (std^2 + level^2) n / level."""
    mean, std, level, x = 0.1, 0.3, 0.5, image()
    n = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = {**XT, "level": level, "steps": 1500, "lr": 0.005, "clamp": "none"}
    with torch.no_grad():
        out = scoreopt.purify(x, Gaussian(mean, std), None, Script([n]), **given)
    torch.testing.assert_close(2 * out - 1, mean + std**2 / level * n, rtol=0, atol=1e-5)


@pytest.mark.parametrize("given", [X0, XT], ids=["x0", "xt"])
@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_values_are_equal_in_all_gradient_variants_and_without_autograd(given, memory):
    denoiser, slopes, x = Gaussian(0.1, 0.3), {}, image()
    denoiser.memory = memory
    run = functools.partial(scoreopt.purify, denoiser=denoiser, classifier=None, **{**given, "clamp": "none"})
    with torch.no_grad():
        plain = run(x, rng=Streams([0, 1], 0, "a"))
    for derivative in ("exact", "identity"):
        leaf = x.clone().requires_grad_()
        out = run(leaf, rng=Streams([0, 1], 0, "a"), derivative=derivative)
        assert torch.equal(out.detach(), plain)
        slopes[derivative] = torch.autograd.grad(out.sum(), leaf)[0]
    assert torch.equal(slopes["identity"], torch.ones_like(x))
    assert (slopes["exact"] - 1).abs().max() > 1e-6


@pytest.mark.parametrize("given", [X0, XT], ids=["x0", "xt"])
def test_the_derivative_equals_central_differences(given):
    """Through every step and, of `xt`, through the denoising at the end, which alone shrinks it by the denoiser's gain
    std^2 / (std^2 + level^2).
    """
    denoiser, v = Gaussian(0.1, 0.3), image().flip(3)

    def run(x: torch.Tensor) -> torch.Tensor:
        out = scoreopt.purify(x, denoiser, None, Streams([0, 1], 0, "a"), **{**given, "clamp": "none"})
        return (out * v).sum()

    leaf = image().requires_grad_()
    (gradient,) = torch.autograd.grad(run(leaf), leaf)
    along = torch.randn(leaf.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        central = (run(leaf + 1e-6 * along) - run(leaf - 1e-6 * along)) / 2e-6
    assert (gradient * along).sum().item() == pytest.approx(central.item(), rel=1e-6)


def test_without_a_step_the_derivative_of_xt_is_the_denoisers_gain():
    leaf, given = image().requires_grad_(), {**XT, "steps": 0, "clamp": "none"}
    out = scoreopt.purify(leaf, Gaussian(0.1, 0.3), None, Streams([0, 1], 0, "a"), **given)
    (gradient,) = torch.autograd.grad(out.sum(), leaf)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.09 / (0.09 + XT["level"] ** 2)))


@pytest.mark.parametrize("given", [X0, XT], ids=["x0", "xt"])
def test_on_step_sees_every_call_of_the_denoiser(given):
    denoiser, seen = Gaussian(), []
    scoreopt.purify(image(), denoiser, None, Streams([0, 1], 0, "a"), **given, on_step=lambda *step: seen.append(step))
    assert [(i, sigma) for i, sigma, _, _ in seen] == [(i, 0.25) for i in range(denoiser.nfe)]
    if given["form"] == "xt":
        for _, sigma, z, x0 in seen:
            torch.testing.assert_close(denoiser.denoise(z, sigma), x0)


@pytest.mark.parametrize(
    "wrong", [{"form": "x1"}, {"spread": 0.25}, {"spread": -0.1}, {"steps": -1}, {"lr": 0.0}, {"derivative": "bpda"}]
)
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match=r"^need "):
        scoreopt.purify(image(), Gaussian(), None, Streams([0, 1], 0, "a"), **{**X0, **wrong})
