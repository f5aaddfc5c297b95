"""Samples of a defense are the same in one call or in several, for all images or for few."""

import pytest
import torch

from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.defense.known_noise import KnownNoise
from dp.purifiers import none
from dp.rng import Streams
from dp.runs.build import build
from tests.helpers.compose import TINY, composed


@pytest.fixture(scope="module")
def sound():
    """Four images and their defense, two samples in a call."""
    evaluation = build(composed(*TINY))
    return evaluation.arms["defended"].scored, evaluation.subset


@pytest.mark.parametrize("few", [[2], [3, 0], [0, 1, 2, 3]])
def test_few_images_get_the_samples_of_all(sound, few):
    model, images = sound
    with torch.no_grad():
        every = model.logits(images.x, Streams(images.ids, 3, "select"), 5)
        some = model.logits_of([(0, b) for b in few], [images.x], Streams(images.ids, 3, "select"), 5)
    assert some.shape == (5, len(few), 10)
    torch.testing.assert_close(some, every[:, few], rtol=0, atol=1e-4)  # up to the rounding of another batch size


def test_few_images_do_not_notice_each_other(sound):
    """Bit for bit, as rows must be."""
    model, images = sound

    def logits(few: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model.logits_of([(0, b) for b in few], [images.x], Streams(images.ids, 3, "select"), 3)

    together = logits([1, 2, 3])
    assert torch.equal(together[:, 1:2], logits([2]))
    assert torch.equal(together[:, [2, 0]], logits([3, 1]))


def test_candidates_of_an_image_share_its_noise(sound):
    model, images = sound
    turned, rng = images.x.flip(3), Streams(images.ids, 3, "select")
    queries = [(1, 2), (0, 2), (1, 0)]
    with torch.no_grad():
        found = model.logits_of(queries, [images.x, turned], rng, 3)
        both = torch.stack([model.logits(x, rng, 3) for x in (images.x, turned)])
    wanted = torch.stack([both[m, :, b] for m, b in queries], dim=1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_deterministic_defense_is_evaluated_once():
    calls = []

    class Counted(torch.nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return x.flatten(1)

    model = Defended(none.purify, None, Classifier(Counted()))
    x = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    queries = [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2)]  # more than one call is wide
    found = model.logits_of(queries, [x, 1 - x], Streams(range(3), 0, "select"), 7)
    assert calls == [3, 3]
    wanted = torch.stack([(x, 1 - x)[m][b].flatten() for m, b in queries])
    assert torch.equal(found, wanted.expand(7, -1, -1))


def test_known_noise_is_the_noise_that_scores(sound):
    model, images = sound
    known, queries = Streams(images.ids, 3, "adv"), [(0, 1), (0, 3)]
    with torch.no_grad():
        found = KnownNoise(model, known, 2).logits_of(queries, [images.x], Streams(images.ids, 9, "attack"), 5)
        scored = model.logits_of(queries, [images.x], known, 2)
    assert torch.equal(found, scored[[0, 1, 0, 1, 0]])
