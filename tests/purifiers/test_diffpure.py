"""Discrete DiffPure with each of DDPM's variances, against runs of its authors' code and closed forms; one-shot
denoising, which is one of its settings.
"""

import functools
import math

import pytest
import torch
from torch import nn

from dp.diffusion.denoisers import VP, EpsNet, Gaussian
from dp.diffusion.sampling import clip_pm1, vp_sigmas
from dp.purifiers import diffpure
from dp.rng import Streams
from dp.runs.compose import make
from tests.helpers import parity
from tests.helpers.affine import moments
from tests.helpers.compose import composed

TOLERANCE = 1e-5  # of the largest entry
NAMES = {"fixedsmall": "small", "fixedlarge": "large", "learned": "learned"}
ABAR = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0).tolist()
MEAN, STD, X = 0.1, 0.3, 0.52  # of the data in [-1,1]; the image in [0,1]


@functools.cache
def recorded(path):
    return parity.Recorded(path)


def purified(file, x, **more):
    """The file's purifications, joined: of x, then of the result, as often as its setting `repeats` says.

    Of the draws of each the last one has no effect, and ours does not draw it. The form with a learned variance is
    guided diffusion's, which clips x0.
    """
    levels, variance = file.settings["t"], NAMES[file.settings["variance"]]
    given = {"t": levels / 1000, "steps": levels, "eta": 1.0, "index_shift": 1, "variance": variance}
    found = []
    for draws in file["draws"].unflatten(0, (file.settings.get("repeats", 1), levels + 1)):
        rng = parity.Script(draws[:-1])
        clipped = "pred_x0" in file.tensors
        x = diffpure.purify(x, file.denoiser(), None, rng, clip_x0=clipped, clamp="none", **given, **more)
        assert rng.left == 0
        found.append(x)
    return torch.cat(found)


def assert_equal(ours, theirs):
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


@parity.of("diffpure")
def test_image_and_states_are_the_originals(path):
    file, steps = recorded(path), []
    x_hat = purified(file, file["x"], on_step=lambda i, sigma, z, x0: steps.append((i, z / math.hypot(1, sigma), x0)))
    assert_equal(x_hat, file["x_hat"])
    inputs = torch.stack([state for _, state, _ in steps])
    if "pred_x0" not in file.tensors:
        assert_equal(inputs, file["states"])
        return
    assert_equal(torch.stack([x0 for *_, x0 in steps]), file["pred_x0"])
    later = [k for k, (i, *_) in enumerate(steps) if i > 0]
    assert len(later) >= len(steps) - len(steps) // file.settings["t"]
    assert_equal(inputs[later], file["states"][[k - 1 for k in later]])  # the file has the states after each step


@parity.of("diffpure")
def test_gradient_is_the_originals(path):
    file = recorded(path)
    x = file["x"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad((file["w"] * purified(file, x)).sum(), x)
    assert_equal(gradient, file["grad_w"])


class Learned(Gaussian):
    """The exact posterior mean, and a constant u that predicts the variance."""

    u = 0.3

    def with_variance(self, z, sigma):
        return self(z, sigma), torch.full_like(z, self.u)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_gaussian_data_have_a_closed_form(variance):
    """Mean and variance by Ho et al. 2020, Eqs. 6 and 7, and Nichol and Dhariwal 2021, Eq. 15, in their own state."""
    chain = [59, 39, 19]  # t = .06 in three steps, index 1000 t - 1
    mean, var = math.sqrt(ABAR[59]) * (2 * X - 1), 1 - ABAR[59]
    for k, a_next in zip(chain, [ABAR[39], ABAR[19], 1.0], strict=True):
        a, beta = ABAR[k], 1 - ABAR[k] / a_next
        gain = math.sqrt(a) * STD**2 / (a * STD**2 + 1 - a)  # x0(v) = MEAN + gain (v - sqrt(a) MEAN)
        on_x0, on_v = math.sqrt(a_next) * beta / (1 - a), math.sqrt(1 - beta) * (1 - a_next) / (1 - a)
        mean = on_x0 * (MEAN + gain * (mean - math.sqrt(a) * MEAN)) + on_v * mean
        tilde = (1 - a_next) / (1 - a) * beta
        noise = {"small": tilde, "large": beta, "learned": beta**0.65 * tilde**0.35}[variance] if a_next < 1 else 0.0
        var = (on_x0 * gain + on_v) ** 2 * var + noise
    given = {"t": 0.06, "steps": 3, "eta": 1.0, "index_shift": 1, "variance": variance, "clamp": "none"}
    assert moments(diffpure.purify, 3, X, Learned(MEAN, STD), **given) == pytest.approx((mean, var), rel=1e-9)


def test_a_learned_variance_is_one_evaluation_per_step():
    denoiser, x = Learned(MEAN, STD), torch.full((1, 1, 2, 2), X)
    diffpure.purify(x, denoiser, None, Streams([0], 0, "adv"), t=0.1, steps=4, eta=1.0, variance="learned")
    assert denoiser.nfe == 4
    for plain in (Gaussian(), EpsNet(Plain())):
        with pytest.raises(ValueError, match=r"need a (noise predictor|network) with learned variance, got"):
            moments(diffpure.purify, 2, X, plain, t=0.1, steps=2, eta=1.0, variance="learned")


class Plain(nn.Module):
    """A noise predictor without further channels."""

    def forward(self, x, label):
        return x


def test_clipping():
    """A posterior mean beyond the bounds is moved to them, and its gradient is cut off there alone."""
    x0 = torch.tensor([-1.5, -1.0, 0.2, 1.0, 1.5], dtype=torch.float64, requires_grad=True)
    out = clip_pm1(x0)
    assert out.tolist() == [-1.0, -1.0, 0.2, 1.0, 1.0]
    (gradient,) = torch.autograd.grad(out.sum(), x0)
    assert gradient.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    seen = []
    given = {"t": 0.2, "steps": 2, "eta": 1.0, "clip_x0": True, "on_step": lambda *step: seen.append(step[3])}
    x_hat = diffpure.purify(torch.ones(1, 1, 2, 2), Gaussian(1.5, 0.1), None, Streams([0], 0, "adv"), **given)
    assert torch.equal(torch.stack(seen), torch.ones(2, 1, 1, 2, 2))
    assert torch.equal(x_hat, torch.ones_like(x_hat))


@pytest.mark.parametrize("pixel_sigma", [0.25, 0.5, 1.0])
def test_one_shot_is_the_posterior_mean_of_smoothed_images(pixel_sigma):
    """Carlini et al. 2023, Alg. 1, with the exact denoiser of N(mean, std^2): the classifier of Cohen et al. adds noise
    of standard deviation pixel_sigma in [0,1] units.
    """
    gain = (STD / 2) ** 2 / ((STD / 2) ** 2 + pixel_sigma**2)  # of the data in [0,1]
    mean = (MEAN + 1) / 2 + gain * (X - (MEAN + 1) / 2)
    node = composed("purifier=one_shot", f"purifier.pixel_sigma={pixel_sigma}", "purifier.clamp=none")["purifier"]
    found = moments(make(node), 1, X, Gaussian(MEAN, STD))
    assert found == pytest.approx((2 * mean - 1, (2 * gain * pixel_sigma) ** 2), rel=1e-9)


def test_one_shot_is_the_single_step_of_the_time_with_its_noise():
    sigma, x = vp_sigmas()[145].item(), torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    by_noise, by_time = (
        diffpure.purify(x, Gaussian(), None, Streams([0, 1], 0, "adv"), steps=1, eta=0.0, **given)
        for given in ({"t": None, "pixel_sigma": sigma / 2}, {"t": 0.145})
    )
    torch.testing.assert_close(by_noise, by_time, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"variance": "huge"}, "need variance among small, large, learned, got variance='huge'"),
        ({"variance": "large", "eta": 0.0}, "need eta=1 .ancestral steps. for variance=large, got eta=0.0"),
        ({"t": None}, "need a noise time t, or pixel_sigma in its place, got neither"),
        ({"pixel_sigma": 0.25}, "need pixel_sigma > 0 with t=null and steps=1"),
        ({"pixel_sigma": 0.25, "t": None, "steps": 2}, "need pixel_sigma > 0 with t=null and steps=1"),
        ({"pixel_sigma": 0.0, "t": None, "steps": 1}, "need pixel_sigma > 0 with t=null and steps=1"),
    ],
)
def test_wrong_values(wrong, words):
    with pytest.raises(ValueError, match=words):
        moments(diffpure.purify, 2, X, Gaussian(), **{"t": 0.1, "steps": 2, "eta": 1.0, **wrong})


def test_a_clock_without_noise_at_its_start_takes_one_step_less():
    """Of the VP clock in continuous time, at whose time 0 there is no noise: sigma(t) = sqrt(1 / abar(t) - 1)."""
    denoiser = VP(parity.Flat())
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    levels = []
    given = {"t": 0.01, "steps": 10, "eta": 1.0, "index_shift": 1}
    seen = {"on_step": lambda i, sigma, z, x0: levels.append(sigma)}
    x_hat = diffpure.purify(x, denoiser, None, Streams([0, 1], 0, "adv"), **given, **seen)  # pyright: ignore[reportArgumentType]
    assert torch.isfinite(x_hat).all()
    assert levels == [denoiser.sigma(k / 1000) for k in range(9, 0, -1)]
    assert denoiser.nfe == 9


def test_a_chain_without_noise_is_refused():
    """With one level less than the index shift asks for, nothing would be purified."""
    with pytest.raises(
        ValueError, match=r"need noise at one of the times, got none with t=0\.001, steps=1, index_shift=1"
    ):
        moments(diffpure.purify, 1, X, VP(parity.Flat()), t=0.001, steps=1, eta=1.0, index_shift=1)
