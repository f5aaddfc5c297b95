"""Boxes of known images: they are those of the file, and no perturbation of the ball can move them."""

from pathlib import Path

import pytest
import torch

from dp.canvas import held_out
from dp.regions import boxes

EPS = 10 / 255


@pytest.fixture(scope="module")
def clean():
    images = held_out()
    return images.subset(len(images.image)).x, images.box


def test_a_mask_is_the_box(clean):
    """Pixel by pixel, as the file says: rows and columns from the first to the last."""
    x, box = clean
    masks = boxes("canvas")(x[:40])
    for mask, (top, left, bottom, right) in zip(masks, box[:40].tolist(), strict=True):
        expected = [[float(top <= r < bottom and left <= c < right) for c in range(32)] for r in range(32)]
        assert mask[0].tolist() == expected


def test_two_images_are_farther_apart_than_two_radii(clean):
    """The proof that a box does not depend on the perturbation, which is at most eps root(d) long in l2."""
    x = clean[0].flatten(1).double()
    far = torch.cdist(x, x).fill_diagonal_(torch.inf)
    assert float(far.min()) > 2 * EPS * 3072**0.5
    page = (Path(__file__).parents[1] / "docs" / "canvas.md").read_text()
    assert f"at least {float(far.min()):.2f} apart" in page
    assert f"at most {EPS * 3072**0.5:.2f} long" in page


def test_no_corner_of_the_ball_moves_a_box(clean):
    """Random corners, and the one that lies nearest to the nearest other image."""
    x, found = clean[0], boxes("canvas")
    far = torch.cdist(x.flatten(1), x.flatten(1)).fill_diagonal_(torch.inf)
    towards = (x[far.argmin(dim=1)] - x).sign()
    at_random = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    for signs in (towards, at_random):
        assert torch.equal(found((x + EPS * signs).clamp(0, 1)), found(x))


def test_there_is_no_gradient_and_the_dtype_is_kept(clean):
    leaf = clean[0][:2].double().requires_grad_()
    mask = boxes("canvas")(leaf)
    assert (mask.dtype, mask.requires_grad) == (torch.float64, False)


def test_errors():
    with pytest.raises(ValueError, match="need dataset=canvas, whose images come with boxes, got dataset=digits"):
        boxes("digits")
    with pytest.raises(ValueError, match=r"need images of the size \(3, 32, 32\)"):
        boxes("canvas")(torch.zeros(1, 1, 16, 16))
