"""The contract of a purifier finds planted faults, and names the property and the likely cause in a sentence."""

import functools
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dp.contracts import derivative, purifier
from dp.contracts.declared import exceptions
from dp.contracts.failure import Failure, undeclared
from dp.defense.defended import Defended
from dp.runs.build import build
from tests.helpers.compose import composed
from tests.helpers.contract import assert_sentence


@pytest.fixture(scope="module")
def classifier():
    return build(composed("purifier=none", "protocol.images=2")).arms["defended"].scored.classifier


def sound(x, denoiser, classifier, rng, *, on_step=None):
    return (0.9 * x + 0.05 * rng.randn_like(x)).sigmoid()


def torch_randn(x, denoiser, classifier, rng, *, on_step=None):
    return (x + 0.05 * torch.randn_like(x)).sigmoid()


def numpy_noise(x, denoiser, classifier, rng, *, on_step=None):
    return (x + 0.05 * torch.from_numpy(np.random.default_rng().normal(size=x.shape)).to(x)).sigmoid()


def seeded_in_place(x, denoiser, classifier, rng, *, on_step=None):
    return (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)).sigmoid()


def in_place(x, denoiser, classifier, rng, *, on_step=None):
    x += 0.05 * rng.randn_like(x)
    return x.sigmoid()


def without_grad(x, denoiser, classifier, rng, *, on_step=None):
    with torch.no_grad():
        return sound(x, denoiser, classifier, rng)


def other_with_a_graph(x, denoiser, classifier, rng, *, on_step=None):
    """Follows an inner gradient only where autograd is on, as the public code of one method does."""
    return (x + 1e-5 * torch.is_grad_enabled()).sigmoid()


def other_for_a_leaf(x, denoiser, classifier, rng, *, on_step=None):
    return (0.99 * x if x.requires_grad else x).sigmoid()


def partly_detached(x, denoiser, classifier, rng, *, on_step=None):
    return (x + 0.3 * x.detach()).sigmoid()


def mean_over_the_batch(x, denoiser, classifier, rng, *, on_step=None):
    return (x - x.mean()).sigmoid()


def rounding(x, denoiser, classifier, rng, *, on_step=None):
    return (3 * x).round() / 3


def straight_rounding(x, denoiser, classifier, rng, *, on_step=None):
    return x + ((3 * x).round() / 3 - x).detach()


def threshold(x, denoiser, classifier, rng, *, on_step=None):
    """Jumps at .01, the bound of the images of the derivative."""
    return 0.7 * x + 0.3 * (x + ((x > 0.01).to(x) - x).detach())


def jpeg(x, denoiser, classifier, rng, *, on_step=None):
    out = []
    for one in (255 * x.detach()).round().to(torch.uint8):
        file = io.BytesIO()
        Image.fromarray(one[0].numpy()).save(file, "JPEG", quality=60)
        out.append(torch.from_numpy(np.asarray(Image.open(file)).copy())[None])
    return torch.stack(out).to(x) / 255


def median(x, denoiser, classifier, rng, *, on_step=None):
    windows = F.unfold(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3).unflatten(1, (x.shape[1], 9))
    return windows.median(dim=2).values.view_as(x)


def twice_as_large(x, denoiser, classifier, rng, *, on_step=None):
    return F.interpolate(x, scale_factor=2)


def beyond_the_range(x, denoiser, classifier, rng, *, on_step=None):
    return 2 * x - 1


def nothing_where_dark(x, denoiser, classifier, rng, *, on_step=None):
    return x / x


def without_on_step(x, denoiser, classifier, rng):
    return x


def no_image(x, denoiser, classifier, rng, *, on_step=None):
    return None


def failures(purify, classifier, images, honest=None) -> list[Failure]:
    return purifier.failures(Defended(purify, None, classifier), images, honest)


def derivative_failures(purify, classifier, images) -> list[Failure]:
    model = Defended(purify, None, classifier).double()
    noise = torch.rand(2, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    try:
        return derivative.failures(
            model, (images.x[:2].double() + 0.05 * noise).clamp(0.01, 0.99), images.y[:2], images.ids[:2]
        )
    finally:
        classifier.float()


@pytest.mark.parametrize(
    ("purify", "name", "words"),
    [
        (torch_randn, "determinism", ("the cause is torch.randn", "rng.randn_like", "of all values")),
        (numpy_noise, "determinism", ("torch's generator is not it", "draw noise from rng only")),
        (seeded_in_place, "order", ("its place in the batch", "torch.manual_seed")),
        (in_place, "input", ("changed x in place", "x = x + ... in place of x += ...")),
        (without_grad, "gradient", ("no graph back to x", "torch.no_grad()", "gradient: none")),
        (jpeg, "gradient", ("no graph back to x", "detach()", "exceptions: {gradient: REASON}")),
        (rounding, "gradient", ("zero at every pixel of 6 of 6 images", "rounding", "gradient: none")),
        (other_with_a_graph, "grad mode", ("than under torch.no_grad()", "by up to 2.", "torch.is_grad_enabled()")),
        (other_for_a_leaf, "grad mode", ("than under torch.no_grad()", "image 0 by up to 0.002", "requires_grad")),
        (mean_over_the_batch, "batch mates", ("only its batch mates", "mean", "dim=(1, 2, 3)")),
        (twice_as_large, "shape", ("(6, 1, 32, 32)", "(6, 1, 16, 16)")),
        (beyond_the_range, "range", ("from -1 to 1", "clamp")),
        (nothing_where_dark, "finite", ("NaN", "division")),
        (without_on_step, "call", ("unexpected keyword argument 'on_step'", "docs/extending.md")),
        (no_image, "shape", ("NoneType",)),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_planted_fault_is_one_sentence(purify, name, words, classifier, images):
    assert_sentence(failures(purify, classifier, images), name, *words)


def test_the_rounding_of_the_grad_mode_is_no_failure(classifier, images):
    """The tolerance is 1e-6, which is the rounding of a network that another kernel computes."""

    def shifted(x, denoiser, classifier, rng, *, on_step=None):
        return (0.5 * x + 0.2 + 5e-7 * torch.is_grad_enabled()).clamp(0, 1)

    assert failures(shifted, classifier, images) == []


@pytest.mark.parametrize(
    ("purify", "words"),
    [
        (partly_detached, ("the loss is smooth", "detach", "relative error of 0.")),
        (straight_rounding, ("constant near the images", "rounding")),
        (threshold, ("the loss jumps", "threshold")),
        (median, ("a kink (median", "exceptions: {derivative: REASON}")),
        (without_grad, ("torch.no_grad()", "autograd finds none")),
        (torch_randn, ("the same images and streams", "torch.randn")),
        (rounding, ("zero everywhere", "rounding")),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_wrong_derivative_is_one_sentence(purify, words, classifier, images):
    assert_sentence(derivative_failures(purify, classifier, images), "derivative", *words)


def test_a_sound_purifier_has_no_failure(classifier, images):
    assert failures(sound, classifier, images) == derivative_failures(sound, classifier, images) == []
    assert failures(functools.partial(sound), classifier, images) == []


def test_the_cause_is_the_one_that_was_planted(classifier, images):
    """The amount is that of the fault: a gray shift of .1 for one image in three shows as such."""

    def shifted(x, denoiser, classifier, rng, *, on_step=None):
        return (0.5 * x + 0.1 * (len(x) == 3)).clamp(0, 1)

    assert_sentence(failures(shifted, classifier, images), "batch size", "by up to 0.1,", "100 % of all values")


def test_a_declared_kink_is_no_failure_and_an_undeclared_one_is(classifier, images):
    found = derivative_failures(median, classifier, images)
    node = {"exceptions": {"derivative": "median: kink at ties"}}
    assert undeclared(found, exceptions(node)) == []
    assert undeclared(found, exceptions({})) == found
    assert undeclared(found, {"gradient": "another one"}) == found


def test_a_method_without_a_gradient_is_held_to_the_gradient_that_it_names(classifier, images):
    """With BPDA a JPEG has one. A named mode that has none is a failure, which nothing declares."""
    reason = {"gradient": "JPEG rounds"}
    assert undeclared(failures(jpeg, classifier, images, "bpda"), reason) == []
    model = Defended(jpeg, None, classifier, variants={"smooth": rounding})
    (left,) = undeclared(purifier.failures(model, images, "smooth"), reason)
    assert_sentence([left], "gradient mode smooth", "zero at every pixel")
