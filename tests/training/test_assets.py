"""The embedded benchmark: its networks do what the README says of them."""

import functools

import pytest
import torch

from dp.datasets import digits
from dp.defense.defended import Defended
from dp.diffusion.sampling import to_pm1
from dp.files.cache import ASSETS
from dp.purifiers import diffpure
from dp.rng import Streams
from dp.runs.build import build
from tests.helpers.compose import composed


@pytest.fixture(scope="module")
def networks() -> Defended:
    return build(composed()).arms["defended"].scored


def test_the_files_are_small():
    assert sum(p.stat().st_size for p in ASSETS.iterdir()) < 6_000_000


def test_a_label_helps_the_conditional_denoiser_and_a_wrong_one_harms(networks):
    """Error at sigma 2 on test images: with the class, without one, with the next class; the unconditional network's
    lies near that without a class.
    """
    denoiser = build(composed("purifier=diffpure", "denoiser=digits_conditional")).arms["defended"].scored.denoiser
    assert denoiser is not None
    subset, unconditional = digits(128), networks.denoiser
    x0 = to_pm1(subset.x)
    z = x0 + 2.0 * Streams(subset.ids, 0, "a").randn_like(x0)
    with torch.no_grad():
        right, none, wrong, plain = (
            (x - x0).square().sum(dim=(1, 2, 3)).mean().item()
            for x in (
                denoiser(z, 2.0, subset.y),
                denoiser(z, 2.0),
                denoiser(z, 2.0, (subset.y + 1) % 10),
                unconditional(z, 2.0),
            )
        )
    assert right < 0.8 * none
    assert wrong > 1.5 * none
    assert none < 1.2 * plain


def test_classifier_accuracy(networks):
    subset = digits()
    with torch.no_grad():
        right = (networks.classifier(subset.x).argmax(1) == subset.y).sum().item()
    assert right >= 510  # 99.8 % of 512 is 511


@pytest.mark.parametrize(
    ("t", "percent", "within"),
    [(0.05, 99.6, 1), (0.1, 99.4, 1), (0.15, 98.2, 1), (0.2, 97.0, 1), (0.3, 88.1, 2), (0.4, 70.7, 2)],
)
def test_standard_accuracy_under_uniform_purification(networks, t, percent, within):
    """Against an independent prototype of this benchmark: DDIM, 10 steps, single sample (mean of two)."""
    subset, right = digits(), 0
    purify = functools.partial(diffpure.purify, t=t, steps=10, eta=0.0)
    model = Defended(purify, networks.denoiser, networks.classifier)
    for part in (subset.select(slice(k, k + 128)) for k in range(0, 512, 128)):
        with torch.no_grad():
            logits = model.logits(part.x, Streams(part.ids, 2024, "clean"), 2)
        right += (logits.argmax(2) == part.y).sum().item()
    assert abs(100 * right / 1024 - percent) <= within
