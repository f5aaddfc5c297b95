"""ME-Net against a run of its code, the derivative of its matrix functions, and its limits."""

from typing import Any

import pytest
import torch

from dp.output.declarations import declared_lines
from dp.purifiers import menet
from dp.purifiers.spectral import largest, parts_of, spectral
from dp.rng import Streams
from tests.helpers import parity
from tests.helpers.compose import composed

SOFT = {"shrinkage": 50.0, "tolerance": 1e-3, "rounds": 100}
GIVEN = {"method": "usvt", "channels": "concat", "keep": 0.5, **SOFT}
BOTH = pytest.mark.parametrize("method", ["usvt", "soft"])


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def mask(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < 0.7


@parity.of("me-net")
@BOTH
def test_parity(path, method):
    run = parity.Recorded(path)
    x = (run["image"].double() / 255).permute(2, 0, 1)[None]
    numbers = 1 - run[f"{method}_mask"].double().view(1, 1, x.shape[2], -1)  # 0 where a pixel is seen
    script = parity.Script([], [numbers])
    given = {**GIVEN, "method": method, "channels": run.settings["me_channel"], "keep": run.settings["keep"]}
    out = menet.purify(x, None, None, script, p=0.5, **given)  # pyright: ignore[reportArgumentType]
    assert (out[0].permute(1, 2, 0) - run[method]).abs().max() < 1e-9


@BOTH
@pytest.mark.parametrize("channels", ["concat", "separate"])
def test_the_exact_gradient_equals_central_differences(method, channels):
    seen = mask(2, 1, 6, 14 if channels == "concat" else 7)
    given = {**GIVEN, "method": method, "channels": channels, "shrinkage": 5.0, "rounds": 6, "clamp": "none"}
    assert torch.autograd.gradcheck(
        lambda x: menet.completed(x, seen, **given), images(2, 2, 6, 7).requires_grad_(), eps=1e-7, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(2, 4, 7), (2, 7, 4), (1, 5, 5)])
def test_the_derivative_of_a_smooth_function_of_singular_values_is_exact(shape):
    """f(s) = s^3 is the function M M^T M of the matrix, which autograd differentiates."""
    matrix = images(*shape).requires_grad_()
    parts, weight = parts_of(matrix), images(*shape)
    out = spectral(matrix, parts, parts.s**3, 3 * parts.s**2)
    torch.testing.assert_close(out, matrix @ matrix.mT @ matrix)
    found, wanted = (
        torch.autograd.grad((weight * value).sum(), matrix)[0] for value in (out, matrix @ matrix.mT @ matrix)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_the_derivative_is_finite_and_right_where_singular_values_are_equal():
    """Of an orthogonal matrix and of zero, M M^T M has the derivatives of autograd."""
    for matrix in (torch.linalg.qr(images(1, 5, 5))[0], torch.zeros(1, 3, 5, dtype=torch.float64)):
        leaf = matrix.clone().requires_grad_()
        parts = parts_of(leaf)
        out, weight = spectral(leaf, parts, parts.s**3, 3 * parts.s**2), images(*matrix.shape)
        found, wanted = (torch.autograd.grad((weight * value).sum(), leaf)[0] for value in (out, leaf @ leaf.mT @ leaf))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_the_largest_singular_value_has_its_derivative():
    matrix = images(2, 4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: largest(m, parts_of(m)), matrix)


def test_a_projection_leaves_what_the_kept_vectors_span():
    """Along a change inside the kept subspaces it is the identity over the share; across them it is zero."""
    x, seen = images(1, 1, 8, 6), torch.ones(1, 1, 8, 6, dtype=torch.bool)
    u, _, vh = torch.linalg.svd(2 * x[0, 0] - 1)
    given = {**GIVEN, "derivative": "projection", "clamp": "none"}
    jacobian: Any = torch.autograd.functional.jacobian(lambda x: menet.completed(x, seen, **given), x)
    inside, across = u[:, :4] @ images(4, 4) @ vh[:4], u[:, 4:] @ images(4, 2) @ vh[4:]
    for change, wanted in ((inside, inside), (across, 0 * across)):
        torch.testing.assert_close(torch.einsum("hwij,ij->hw", jacobian[0, 0, :, :, 0, 0], change), wanted)


@BOTH
@pytest.mark.parametrize("derivative", ["exact", "projection"])
def test_the_values_are_the_same_for_every_gradient(method, derivative):
    given, seen = {**GIVEN, "method": method}, mask(2, 1, 8, 24)
    found = menet.completed(images(2, 3, 8, 8).requires_grad_(), seen, **given, derivative=derivative)
    assert torch.equal(found.detach(), menet.completed(images(2, 3, 8, 8), seen, **given))


@BOTH
def test_an_image_of_low_rank_is_completed(method):
    """From 80 % of a rank-1 image: usvt comes nearer to it than the masked image, soft-impute nearly reaches it."""
    x = (1 + images(1, 1, 32, 1) @ images(1, 1, 1, 32)) / 2
    seen = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(2)) < 0.8
    given = {**GIVEN, "method": method, "keep": 1 / 32, "shrinkage": 50.0, "tolerance": 1e-6, "rounds": 300}
    error = (menet.completed(x, seen, **given) - x).square().mean().sqrt()
    blank = (torch.where(seen, x, 0.5) - x).square().mean().sqrt()
    assert error < blank / (2 if method == "usvt" else 20)


def test_with_all_pixels_and_all_singular_values_nothing_changes():
    x = images(2, 3, 8, 6)
    for method in ("usvt", "soft"):
        given = {**GIVEN, "method": method, "keep": 1.0}
        out = menet.purify(x, None, None, Streams([0, 1], 0, "a"), p=1.0, **given)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(out, x, rtol=0, atol=1e-12)


def test_soft_impute_passes_the_seen_pixels_on():
    x, seen = images(2, 1, 8, 8), mask(2, 1, 8, 8)
    out = menet.completed(x, seen, **{**GIVEN, "method": "soft"})
    torch.testing.assert_close(out[seen], x[seen], rtol=0, atol=1e-12)
    assert (out - x)[~seen].abs().min() > 0


@pytest.mark.parametrize(("channels", "alike"), [("concat", False), ("separate", True)])
def test_the_masks_are_fresh_and_of_the_right_share(channels, alike):
    """With soft-impute the seen pixels are those that did not change. Separate channels share one mask."""
    x, given = images(2, 3, 16, 16), {**GIVEN, "method": "soft", "channels": channels}
    first, second = (
        menet.purify(x, None, None, Streams([0, 1], 0, "a").draw(k), p=0.6, **given)  # pyright: ignore[reportArgumentType]
        for k in range(2)
    )
    kept = (first - x).abs() < 1e-12
    assert kept.double().mean().item() == pytest.approx(0.6, abs=0.06)
    assert torch.equal(kept[:, 0], kept[:, 1]) is alike
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(first, second)


def test_training_images_have_the_shares_of_the_recipe():
    x, given = images(64, 1, 16, 16), {**GIVEN, "method": "soft"}
    out = menet.augment(x, torch.Generator().manual_seed(0), p=[0.4, 0.6], masks=10, **given)
    shares = ((out - x).abs() < 1e-12).double().mean(dim=(1, 2, 3))
    assert shares.mean().item() == pytest.approx(0.511, abs=0.02)  # the mean of .42, .44, ..., .6
    assert shares.std() > 0.05


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "set classifier=digits_menet"),
        (("dataset=imagenet",), "dp names none that was"),
        (("classifier=digits_menet",), None),
    ],
)
def test_a_classifier_that_was_not_trained_on_its_images_is_said(words, said):
    lines = declared_lines(composed("purifier=menet", *words), {"gradients": [(), ("bpda",), ("projection",)]})
    assert len(lines) == (said is not None)
    assert all("was not trained on the images of the purifier menet" in line and said in line for line in lines)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"p": 0.0}, "need 0 < p <= 1"),
        ({"method": "nuclear"}, "need method among usvt, soft"),
        ({"channels": "rows"}, "need channels among concat, separate"),
        ({"keep": 0.01}, r"need keep \* H >= 1"),
        ({"derivative": "none"}, "need derivative among exact, projection"),
        ({"rounds": 0}, "rounds >= 1"),
    ],
)
def test_bad_values(changed, words):
    with pytest.raises(ValueError, match=words):
        menet.purify(images(1, 1, 8, 8), None, None, Streams([0], 0, "a"), **{"p": 0.5, **GIVEN, **changed})  # pyright: ignore[reportArgumentType]
