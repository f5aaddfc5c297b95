"""Draws of a defence: asked together or one by one, of all images or of few, they are the same."""

import pytest
import torch
from conftest import TINY, composed

import run
from dp.rng import Streams


@pytest.fixture(scope="module")
def sound():
    """Four images and their defence, two draws a call."""
    evaluation = run.build(composed(*TINY))
    return evaluation.arms["defended"].scored, evaluation.subset


@pytest.mark.parametrize("few", [[2], [3, 0], [0, 1, 2, 3]])
def test_few_images_get_the_draws_of_all(sound, few):
    model, images = sound
    with torch.no_grad():
        every = model.logits(images.x, Streams(images.ids, 3, "select"), 5)
        some = model.logits_of(few, images.x, Streams(images.ids, 3, "select"), 5)
    assert some.shape == (5, len(few), 10)
    torch.testing.assert_close(some, every[:, few], rtol=0, atol=1e-4)  # up to the rounding of another batch size


def test_few_images_do_not_notice_each_other(sound):
    """Bit for bit, as rows must be."""
    model, images = sound

    def asked(few: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model.logits_of(few, images.x, Streams(images.ids, 3, "select"), 3)

    together = asked([1, 2, 3])
    assert torch.equal(together[:, 1:2], asked([2]))
    assert torch.equal(together[:, [2, 0]], asked([3, 1]))
