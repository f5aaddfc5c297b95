"""GDMP against runs of its released code, against the affine recursion of a Gaussian denoiser, and in its limits."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dp.diffusion.ddpm import posterior_mean, small_variance
from dp.diffusion.denoisers import VP, EpsNet, Gaussian
from dp.diffusion.sampling import renoise, to_01, to_pm1, vp_sigma
from dp.purifiers import diffpure, gdmp
from dp.purifiers.ssim import ssim
from dp.rng import Streams
from dp.runs.compose import make
from dp.threat_models.ball import parse_eps
from tests.helpers import affine, papers, parity
from tests.helpers.compose import composed

GIVEN = {
    "t": 0.149,
    "end": 0.029,
    "steps": 5,
    "rounds": 2,
    "noise_above": 0,
    "guide": "mse",
    "noisy_guide": True,
    "strength": 20.0,
    "share": 1.0,
    "variance": "small",
}
INDICES = (149, 119, 89, 59, 29, -1)
VARIANCES = {"fixedsmall": "small", "fixedlarge": "large", "learned": "learned"}


def given_by(run: parity.Recorded) -> dict:
    """The purifier's arguments for a file of the original code."""
    said: dict[str, Any] = run.settings
    kept, cifar, images = said["K"], said["branch"] == "cifar10", len(run["x"])
    return {
        "t": (kept - 1) / 1000 if cifar else (kept - 1) * 999 / (said["respacing"] - 1) / 1000,
        "end": 0.0,
        "steps": kept,
        "rounds": said["rounds"],
        "noise_above": int(cifar),
        "guide": said["guide"].lower(),
        "noisy_guide": cifar,
        "strength": 3 * said["G"] / (2 * parse_eps(said["eps"])),
        "share": 1 / images,
        "variance": VARIANCES[said["variance"]],
        "clamp": "none",
    }


def asked_for(run: parity.Recorded) -> list[Tensor]:
    """The recorded draws without those whose factor is zero: the sampler's in the last step of a round, and the
    guide's there where the variance is none.
    """
    said: dict[str, Any] = run.settings
    per_step = 2 if said["branch"] == "cifar10" else 1
    a_round = 1 + per_step * said["K"]
    unused = 2 if said["variance"] == "fixedsmall" and per_step == 2 else 1
    rounds = run["draws"].unflatten(0, (said["rounds"], a_round))
    return list(rounds[:, : a_round - unused].flatten(0, 1))


def close(found: Tensor, wanted: Tensor) -> None:
    """Equal to 1e-5 of the largest entry."""
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@parity.of("gdmp")
@pytest.mark.parametrize("leaf", [False, True])
def test_parity(path, leaf):
    """x_hat, and the state after every round (CIFAR-10) or step (ImageNet); the same with and without a graph."""
    run = parity.Recorded(path)
    given, script, seen = given_by(run), parity.Script(asked_for(run)), []
    x, rounds, steps = run["x"].requires_grad_(leaf), given["rounds"], given["steps"]

    def note(i: int, sigma: float, z: Tensor, x0: Tensor) -> None:
        seen.append(z.detach() / math.sqrt(1 + sigma**2))

    with torch.set_grad_enabled(leaf):
        out = gdmp.purify(x, run.denoiser(), None, script, **given, on_step=note).detach()  # pyright: ignore[reportArgumentType]
    assert script.left == 0
    close(out.clamp(0, 1), run["x_hat"])
    close(2 * out - 1, run["states"][-1])
    if run.settings["branch"] != "cifar10":
        for i, state in enumerate(run["states"]):
            if (i + 1) % steps > 0:  # the last one of a round is noised before it is seen
                close(seen[i + 1], state)
        return
    assert len(run["states"]) == rounds
    for done in range(1, rounds):
        again, fewer = parity.Script(asked_for(run)), {**given, "rounds": done}
        part = gdmp.purify(x.detach(), run.denoiser(), None, again, **fewer)  # pyright: ignore[reportArgumentType]
        close(2 * part - 1, run["states"][done - 1])


@parity.of("gdmp")
def test_the_gradient_of_the_original_networks(path):
    """The guide, its noised target and a learned variance are all differentiated: against central differences."""
    run = parity.Recorded(path)
    generator = torch.Generator().manual_seed(0)
    x, w, v = (torch.rand(run["x"].shape, dtype=torch.float64, generator=generator) for _ in range(3))

    def value(x: Tensor) -> Tensor:
        return (w * gdmp.purify(x, run.denoiser(), None, parity.Script(asked_for(run)), **given_by(run))).sum()  # pyright: ignore[reportArgumentType]

    leaf = x.clone().requires_grad_()
    slope = (torch.autograd.grad(value(leaf), leaf)[0] * v).sum().item()
    with torch.no_grad():
        central = [(value(x + h * v) - value(x - h * v)).item() / (2 * h) for h in (1e-5, 1e-6, 1e-7)]
    assert min(abs(one - slope) for one in central) < 1e-6 * abs(slope)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize(("noisy", "above"), [(True, 1), (False, 0)])
def test_mean_and_variance_with_a_gaussian_denoiser(variance, noisy, above):
    """The method in the papers' coordinates, as a recursion of a mean and a variance. The guide sees one pixel."""
    strength, share, given, draws = 40.0, 0.5, 2 * papers.X - 1, 0
    mean, var = given, 0.0
    for _ in range(2):
        a = papers.abar(INDICES[0] + above)
        mean, var, draws = math.sqrt(a) * mean, a * var + 1 - a, draws + 1
        for k, j in pairwise(INDICES):
            small, large = papers.posterior(0.0, k, j)[1:]
            if j < 0:
                large = papers.posterior(0.0, 59, 29)[1]
            s = {"small": small, "large": large}[variance]
            a = papers.abar(k)
            rate = 2 * s * strength * share * math.sqrt((1 - a) / a)
            gain = papers.posterior(1.0, k, j)[0] - papers.posterior(0.0, k, j)[0] - rate
            mean = gain * mean + papers.posterior(0.0, k, j)[0] + rate * given * (math.sqrt(a) if noisy else 1)
            var = gain**2 * var + (rate**2 * (1 - a) if noisy else 0) + (s if j >= 0 else 0)
            draws += int(noisy and s > 0) + int(j >= 0)
    changed = {"strength": strength, "share": share, "noisy_guide": noisy, "noise_above": above, "variance": variance}
    found = affine.moments(gdmp.purify, draws, papers.X, Gaussian(papers.MEAN, papers.STD), **{**GIVEN, **changed})
    assert found == pytest.approx((mean, var), abs=1e-10)


def test_without_strength_it_is_ddpm():
    """Bit for bit the unguided rounds, with no noise drawn for a guide, and one round of small variance is DiffPure."""
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(0.2).add(0.4)
    denoiser, rng = Gaussian(papers.MEAN, papers.STD), Streams([3, 4], 0, "a")
    sigmas, state = [*(vp_sigma(k / 1000) for k in INDICES[:-1]), 0.0], to_pm1(x)
    for _ in range(2):
        z = renoise(state, 0.0, sigmas[0], rng.randn_like(x))
        for sigma, sigma_next in pairwise(sigmas):
            z = posterior_mean(z, denoiser(z, sigma).clamp(-1, 1), sigma, sigma_next)
            if sigma_next > 0:
                z = z + small_variance(sigma, sigma_next) ** 0.5 * rng.randn_like(x)
        state = z
    for guide in ("mse", "ssim"):
        given = {**GIVEN, "strength": 0.0, "guide": guide}
        found = gdmp.purify(x, denoiser, None, Streams([3, 4], 0, "a"), **given)  # pyright: ignore[reportArgumentType]
        assert torch.equal(found, to_01(state))
    given = {**GIVEN, "strength": 0.0, "rounds": 1}
    one = gdmp.purify(x, denoiser, None, Streams([3, 4], 0, "a"), **given)  # pyright: ignore[reportArgumentType]
    plain = diffpure.purify(
        x,
        denoiser,
        None,  # pyright: ignore[reportArgumentType]
        Streams([3, 4], 0, "a"),
        t=0.149,
        steps=[k / 1000 for k in INDICES[:-1]],
        eta=1.0,
    )
    torch.testing.assert_close(one, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("guide", ["mse", "ssim"])
def test_a_constant_guide_changes_the_gradient_alone(guide):
    """The input then enters by the noisy start alone, whose gain is that of the unguided chain."""
    x = torch.rand(2, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(0.1).add(0.5)
    outs, gradients = [], []
    for constant in (False, True):
        leaf, given = x.clone().requires_grad_(), {**GIVEN, "guide": guide, "rounds": 1, "strength": 300.0}
        rng = Streams([3, 4], 0, "a")
        outs.append(gdmp.purify(leaf, Gaussian(0.0, 0.3), None, rng, **given, constant_guide=constant, clamp="none"))  # pyright: ignore[reportArgumentType]
        gradients.append(torch.autograd.grad(outs[-1].sum(), leaf)[0])
    assert torch.equal(*outs)
    gain = math.prod(  # what a step keeps of the state, and what it takes from the denoised image
        (sigma_next / sigma) ** 2 + (1 - (sigma_next / sigma) ** 2) * 0.09 / (0.09 + sigma**2)
        for sigma, sigma_next in pairwise([*(vp_sigma(k / 1000) for k in INDICES[:-1]), 0.0])
    )
    torch.testing.assert_close(gradients[1], torch.full_like(x, gain), rtol=1e-10, atol=0)
    assert (gradients[0] - gain).abs().max() > 1e-3


@pytest.mark.parametrize("guide", ["mse", "ssim"])
def test_a_stronger_guide_is_nearer_to_the_image(guide):
    x = torch.rand(2, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    distances = []
    for strength in (0.0, 100.0, 1000.0):
        given = {**GIVEN, "guide": guide, "strength": strength, "rounds": 1, "noisy_guide": False}
        out = gdmp.purify(x, Gaussian(0.0, 0.5), None, Streams([3, 4], 0, "a"), **given)  # pyright: ignore[reportArgumentType]
        distances.append((out - x).square().mean().item())
    assert distances[0] > distances[1] > distances[2]


def test_ssim_by_hand():
    """Every window as a sum of 121 weighted products, with zeros beyond the border."""
    a, b = (torch.randn(2, 2, 7, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    padded = [np.pad(image.numpy(), [(0, 0), (0, 0), (5, 5), (5, 5)]) for image in (a, b)]
    total = np.zeros(2)
    for image, channel, i, j in np.ndindex(2, 2, 7, 13):
        p, q = (one[image, channel, i : i + 11, j : j + 11] for one in padded)
        m, n, pp, qq, pq = (float((weights * v).sum()) for v in (p, q, p * p, q * q, p * q))
        total[image] += (
            (2 * m * n + 1e-4) * (2 * (pq - m * n) + 9e-4) / ((m * m + n * n + 1e-4) * (pp - m * m + qq - n * n + 9e-4))
        )
    torch.testing.assert_close(ssim(a, b), torch.from_numpy(total / (2 * 7 * 13)), rtol=0, atol=1e-12)
    torch.testing.assert_close(ssim(a, a), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rounds": 0}, "need rounds >= 1"),
        ({"guide": "l1"}, "need guide among mse, ssim, got guide='l1'"),
        ({"strength": -1.0}, "need strength >= 0"),
        ({"share": 0.0}, "0 < share <= 1"),
        ({"variance": "medium"}, "need variance among small, large, learned"),
        ({"variance": "learned"}, "need a noise predictor with learned variance, got Gaussian"),
        ({"end": 0.2}, "need 0 <= end < t"),
        ({"steps": 1}, "2 <= steps"),
    ],
)
def test_bad_values(changed, words):
    with pytest.raises(ValueError, match=words):
        gdmp.purify(torch.rand(1, 1, 4, 4), Gaussian(), None, Streams([0], 0, "a"), **{**GIVEN, **changed})  # pyright: ignore[reportArgumentType]


class Six(torch.nn.Module):
    """A network with as many further channels, which say nothing."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return torch.cat([0.1 * x, torch.zeros_like(x)], dim=1)


@pytest.mark.parametrize(
    ("dataset", "option", "guide", "budget", "eps", "batch", "nfe"),
    [
        ("cifar10", "gdmp", "mse", 60000, 8 / 255, 100, 4 * 36),
        ("cifar10", "gdmp_ssim", "ssim", 70000, 8 / 255, 100, 4 * 36),
        ("imagenet", "gdmp", "mse", 1000, 4 / 255, 60, 45),
        ("imagenet", "gdmp_ssim", "ssim", 1000, 4 / 255, 60, 45),
    ],
)
def test_the_yaml_holds_the_values_of_the_released_code(dataset, option, guide, budget, eps, batch, nfe):
    node = composed(f"dataset={dataset}", f"purifier={option}")["purifier"]
    assert node["guide"] == guide
    assert node["strength"] == pytest.approx(3 * budget / (2 * eps), rel=1e-6)
    assert node["share"] == pytest.approx(1 / batch, rel=1e-5)
    denoiser = EpsNet(Six())
    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert make(node)(x, denoiser, None, Streams([0], 0, "a")).shape == x.shape
    assert denoiser.nfe == nfe


@pytest.mark.parametrize("option", ["gdmp", "gdmp_ssim"])
def test_a_clock_without_noise_at_time_0_takes_one_step_less_in_each_round(option):
    """Continuous time has sigma = 0 at t = 0, which is no step of the chain but its end."""
    node, denoiser, seen = composed("dataset=cifar10", f"purifier={option}")["purifier"], VP(parity.Flat()), []
    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x_hat = make(node)(x, denoiser, None, Streams([0], 0, "a"), on_step=lambda i, s, z, x0: seen.append((i, s)))
    assert torch.isfinite(x_hat).all()
    assert seen == [(i, denoiser.sigma((35 - i % 35) / 1000)) for i in range(4 * 35)]
    assert denoiser.nfe == 4 * 35
