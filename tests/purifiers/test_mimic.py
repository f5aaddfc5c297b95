"""MimicDiffusion against a run of its released code in both its functions, and the gradient that it does not have."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from dp.contracts import derivative
from dp.diffusion.denoisers import Gaussian
from dp.diffusion.sampling import ancestral_step, to_01, to_pm1, vp_sigma
from dp.purifiers import diffpure, mimic
from dp.rng import Streams
from dp.runs.build import build
from dp.runs.compose import make
from tests.helpers import parity
from tests.helpers.compose import composed

GIVEN = {"t": 0.999, "end": 0.099, "steps": 10, "guided": [2, 8], "pull": 0.3}


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def purified(x: torch.Tensor, seed: int = 0, **changed) -> torch.Tensor:
    rng = Streams(range(len(x)), seed, "a")
    return mimic.purify(x, Gaussian(0.0, 0.5), None, rng, **{**GIVEN, **changed})  # pyright: ignore[reportArgumentType]


@parity.of("mimic")
@pytest.mark.parametrize("leaf", [False, True])
@pytest.mark.parametrize(("through", "name"), [(False, "x_hat"), (True, "x_hat_grad_mode")])
def test_parity(path, through, name, leaf):
    """As scored, and with the sign pulled back through the network; each the same with and without a graph."""
    run, seen = parity.Recorded(path), {}
    said: dict[str, Any] = run.settings
    count, _, height, width = run["x"].shape
    first, last = (int(part) for part in said["guided_counts"].split(".."))
    steps, draws = said["steps"], run["draws"]
    script = parity.Script(list(draws[1 : steps + 1]))  # the first noises the input and is dropped, as is the last
    with torch.set_grad_enabled(leaf):
        out = mimic.purify(
            run["x"].requires_grad_(leaf),
            run.denoiser(),
            None,  # pyright: ignore[reportArgumentType]
            script,  # pyright: ignore[reportArgumentType]
            t=0.999,
            end=(1000 // steps - 1) / 1000,
            steps=steps,
            guided=[first, last],
            pull=2 * said["rho"] / (count * height * width),
            guide_through_network=through,
            clamp="none",
            on_step=lambda i, sigma, z, x0: seen.update({i: z.detach() / math.sqrt(1 + sigma**2)}),
        ).detach()
    assert script.left == 0
    assert (out - run[name]).abs().max() < 1e-5 * run[name].abs().max()
    if through:
        return
    for i, state in zip(said["state_counts"], run["states"], strict=True):
        assert (seen[i] - state).abs().max() < 1e-5 * state.abs().max()
    torch.testing.assert_close(run.classifier()(out), run["logits"], rtol=0, atol=1e-5)


def test_without_a_pull_it_is_generation():
    """Bit for bit the unguided chain from pure noise, whatever the image."""
    rng, n = Streams([0, 1], 0, "a"), images()
    sigmas = [*(vp_sigma(k / 1000) for k in range(999, 0, -100)), 0.0]
    denoiser = Gaussian(0.0, 0.5)
    z = math.sqrt(1 + sigmas[0] ** 2) * rng.randn_like(n)
    for sigma, sigma_next in pairwise(sigmas):
        z = ancestral_step(z, denoiser(z, sigma), sigma, sigma_next, rng.randn_like(z) if sigma_next > 0 else None, 1.0)
    for through in (False, True):
        assert torch.equal(purified(images(), pull=0.0, guide_through_network=through), to_01(z))
    assert torch.equal(purified(1 - images(), pull=0.0), to_01(z))


def test_the_smoothed_sign_tends_to_the_sign():
    hard = purified(images())
    errors = [(purified(images(), width=width) - hard).abs().max().item() for width in (1e-1, 1e-14)]
    assert errors[0] > 1e-3
    assert errors[1] < 1e-9


def test_a_guided_step_goes_toward_the_image():
    """One guided step at the end moves every pixel of the result by `pull` against the sign of the difference."""
    x, given = images(), {"guided": [9, 9], "clamp": "none"}
    free, guided = (purified(x, pull=pull, **given) for pull in (0.0, 0.01))
    torch.testing.assert_close(guided, free - 0.005 * (free - x).sign(), rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def built():
    evaluation = build(composed("purifier=mimic", "protocol.images=2"))
    return evaluation.arms["defended"].scored.double(), evaluation.subset


def test_the_methods_own_gradient_is_zero_and_the_yaml_names_another(built):
    model, subset = built
    gradient = model.loss_gradient(subset.x.double(), subset.y, Streams(subset.ids, 1, "attack"), 1)[1]
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert composed("purifier=mimic")["threat_model"]["grad"] == "soft_sign"


@pytest.mark.parametrize(("through", "memory"), [(False, "store"), (True, "recompute")])
def test_the_soft_gradient_equals_central_differences(through, memory):
    config = composed("purifier=mimic", "protocol.images=1", f"purifier.guide_through_network={through}")
    evaluation = build({**config, "memory": memory})
    model, subset = evaluation.arms["defended"].scored.double().gradient_mode("soft_sign"), evaluation.subset
    x = (subset.x.double() + 0.05 * images(1).repeat(1, 1, 2, 2)).clamp(0.01, 0.99)
    assert not derivative.failures(model, x, subset.y, subset.ids)


def test_both_memory_modes_have_the_gradient_through_the_network():
    """The guide differentiates the denoiser, so the attack's gradient is a second derivative."""
    answers = []
    for memory in ("store", "recompute"):
        given = ("purifier=mimic", "purifier.guided=[6,8]", "purifier.guide_through_network=true")
        config = composed(*given, "protocol.images=1")
        evaluation = build({**config, "memory": memory})
        model, subset = evaluation.arms["defended"].attacked.double(), evaluation.subset
        x, streams = subset.x.double(), Streams(subset.ids, 1, "attack")
        answers.append(model.loss_gradient(x, subset.y, streams, 1)[1])
    assert answers[0].abs().max() > 0
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-6, atol=0)


def test_a_width_of_zero_would_be_the_sign_again_and_is_refused():
    with pytest.raises(ValueError, match="need pull >= 0 and width > 0"):
        build(composed("purifier=mimic", "protocol.images=1", "purifier.gradients.soft_sign.width=0"))


def test_the_authors_attack_is_plain_diffpure(built):
    model, subset = built
    x, streams = subset.x.double(), [Streams(subset.ids, 1, "attack") for _ in range(2)]
    found = model.gradient_mode("diffpure").purify(x, streams[0])
    wanted = diffpure.purify(x, model.denoiser, model.classifier, streams[1], t=0.2, steps=5, eta=1.0, index_shift=1)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"guided": [3, 10]}, r"need guided as integers \[first, last\] with 0 <= first <= last < 10 steps, got"),
        *(({"guided": each}, "need guided as integers") for each in (["a", "b"], [2.5, 5], [2], 5, "25", [True, 5])),
        ({"guided": [4, 3]}, "need guided"),
        ({"pull": -0.1}, "need pull >= 0 and width > 0"),
        ({"width": -0.1}, "need pull >= 0 and width > 0"),
        ({"width": 0}, "need pull >= 0 and width > 0, or width=null for the plain sign"),
        ({"end": 0.999}, "need 0 <= end < t"),
    ],
)
def test_bad_values(changed, words):
    with pytest.raises(ValueError, match=words):
        purified(images(), **changed)


def test_the_yaml_holds_the_values_of_the_released_code():
    node = composed("dataset=cifar10", "purifier=mimic")["purifier"]
    assert node["pull"] == pytest.approx(2 * 3000 / (16 * 32 * 32), rel=1e-5)
    assert (node["guided"], node["guide_through_network"]) == ([21, 89], False)
    denoiser, sigmas = Gaussian(), []
    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    make(node)(x, denoiser, None, Streams([0], 0, "a"), on_step=lambda i, sigma, z, x0: sigmas.append(sigma))
    assert sigmas == [vp_sigma(k / 1000) for k in range(999, 0, -10)]


def test_the_image_enters_by_the_sign_alone():
    """Images on the same side of every denoised value are one image to the method."""
    x = images().round()
    assert torch.equal(purified(to_01(3 * to_pm1(x), "none")), purified(to_01(4 * to_pm1(x), "none")))
