"""Attention maps and masks against small cases worked out by hand."""

import math

import pytest
import torch

from dp.purifiers.attention_mask import attention_maps, chosen, scattered, threshold_mask, top_mask
from dp.rng import Streams
from dp.runs.build import build
from tests.helpers.compose import composed

LOGS = torch.tensor([[0.0, math.log(2)], [math.log(3), math.log(4)]], dtype=torch.float64)


def one_tap(g):
    """Features whose root sum of squares over channels is g: channels .6 g and -.8 g."""
    return torch.stack([0.6 * g, -0.8 * g])[None]


def random_features(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize(
    ("phi", "expected"),
    [
        ("softmax", [0.1, 0.2, 0.3, 0.4]),
        ("softmax_max", [0.25, 0.5, 0.75, 1]),
        ("minmax", [0, 0.5, math.log(3) / math.log(4), 1]),
    ],
)
def test_each_phi_by_hand(phi, expected):
    found = attention_maps([one_tap(LOGS)], (2, 2), phi)
    assert found.shape == (1, 1, 2, 2)
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("root", "expected"), [(True, [3 / 13, 1]), (False, [9 / 169, 1])])
def test_root_of_the_sum_of_squares(root, expected):
    """|(0,0)| = 0, |(3,0)| = 3 and |(5,12)| = 13."""
    a = torch.tensor([[[0.0, 3.0, -5.0]], [[0.0, 0.0, 12.0]]], dtype=torch.float64)[None]
    assert attention_maps([a], (1, 3), "minmax", root).flatten().tolist() == pytest.approx([0, *expected])


def test_default_is_softmax_over_its_maximum_with_root():
    a = torch.tensor([[[0.0, 3.0]], [[0.0, 4.0]]])[None]
    assert attention_maps([a], (1, 2)).flatten().tolist() == pytest.approx([math.exp(-5), 1])


def test_the_map_is_enlarged_before_phi_with_half_pixel_centers():
    """A row a, b enlarged twofold is a, (3a+b)/4, (a+3b)/4, b."""
    found = attention_maps([one_tap(torch.tensor([[0.0, math.log(16)]], dtype=torch.float64))], (1, 4), "softmax_max")
    assert found.flatten().tolist() == pytest.approx([1 / 16, 1 / 8, 1 / 2, 1])


def test_taps_are_normalized_apart_and_keep_their_order():
    big, small = random_features(0, (3, 5, 8, 8), (3, 7, 2, 2))
    for phi in ("softmax", "softmax_max", "minmax"):
        both = attention_maps([big * 10, small], (8, 8), phi)
        assert both.shape == (3, 2, 8, 8)
        torch.testing.assert_close(both[:, :1], attention_maps([big * 10], (8, 8), phi))
        torch.testing.assert_close(both[:, 1:], attention_maps([small], (8, 8), phi))


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 1e4])
def test_literal_softmax_exceeds_a_half_at_one_pixel_at_most(scale):
    features = random_features(1, (8, 4, 6, 6), (8, 9, 3, 3))
    maps = attention_maps([scale * a for a in features], (12, 12), "softmax")
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(8, 2))
    assert (maps > 0.5).sum(dim=(2, 3)).max() <= 1
    assert (maps >= 0).all()


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("phi", ["softmax_max", "minmax"])
def test_other_maps_peak_at_1(phi, scale):
    features = random_features(1, (8, 4, 6, 6), (8, 9, 3, 3))
    maps = attention_maps([scale * a for a in features], (12, 12), phi)
    assert torch.equal(maps.amax(dim=(2, 3)), torch.ones(8, 2))
    assert maps.min() >= 0
    if phi == "minmax":
        assert torch.equal(maps.amin(dim=(2, 3)), torch.zeros(8, 2))


@pytest.mark.parametrize(("phi", "level"), [("minmax", 0), ("softmax_max", 1), ("softmax", 1 / 64)])
@pytest.mark.parametrize(("value", "side"), [(0.0, 3), (0.7, 8), (1e6, 8)])
def test_a_constant_map(phi, level, value, side):
    """A dead layer, and a flat one: no NaN, and no pixel stands out."""
    maps = attention_maps([torch.full((2, 3, side, side), value)], (8, 8), phi)
    torch.testing.assert_close(maps, torch.full((2, 1, 8, 8), float(level)))


def test_unknown_phi():
    with pytest.raises(ValueError, match="need phi"):
        attention_maps([torch.ones(1, 1, 2, 2)], (2, 2), "sigmoid")


MAPS = torch.tensor([[[[0.1, 0.5], [0.8, 0.2]], [[0.3, 0.2], [0.1, 0.2]]]])  # (1,2,2,2)


@pytest.mark.parametrize(
    ("tau", "inclusive", "expected"),
    [
        (0.5, False, [0, 0, 1, 0]),
        (0.5, True, [0, 1, 1, 0]),
        (0.25, False, [1, 1, 1, 0]),  # the first pixel by the second tap alone
        (0.0, False, [1, 1, 1, 1]),
        (1.0, True, [0, 0, 0, 0]),
    ],
)
def test_threshold(tau, inclusive, expected):
    mask = threshold_mask(MAPS, tau, inclusive)
    assert mask.shape == (1, 1, 2, 2)
    assert mask.dtype == MAPS.dtype
    assert mask.flatten().tolist() == expected


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("tau", [0.0, 0.3, 0.9, 1.0])
def test_threshold_is_the_union_over_taps(tau, inclusive):
    maps = attention_maps(random_features(2, (4, 3, 5, 5), (4, 3, 3, 3), (4, 3, 2, 2)), (10, 10), "minmax")
    union = torch.zeros(4, 1, 10, 10)
    for tap in range(3):
        union = torch.maximum(union, threshold_mask(maps[:, tap : tap + 1], tau, inclusive))
    assert torch.equal(threshold_mask(maps, tau, inclusive), union)


def test_the_peak_is_inside_only_with_an_inclusive_threshold_of_1():
    maps = attention_maps([one_tap(LOGS)], (2, 2), "minmax")
    assert threshold_mask(maps, 1.0).sum() == 0
    assert threshold_mask(maps, 1.0, inclusive=True).sum() == 1


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_bad_threshold(tau):
    with pytest.raises(ValueError, match="need 0 <= tau <= 1"):
        threshold_mask(MAPS, tau)


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.0099, 0), (0.01, 1), (0.15, 15), (0.158, 15), (1, 100)])
@pytest.mark.parametrize("constant", [False, True])
def test_top_mask_has_exactly_its_share(share, count, constant):
    """Ties at the border do not change how many pixels are in."""
    maps = torch.ones(3, 2, 10, 10) if constant else random_features(3, (3, 2, 10, 10))[0].sigmoid()
    mask = top_mask(maps, share)
    assert mask.shape == (3, 1, 10, 10)
    assert mask.sum(dim=(1, 2, 3)).tolist() == [count] * 3
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    joint = torch.maximum(maps[:, :1], maps[:, 1:])
    for one, inside in zip(joint, mask.bool(), strict=True):
        if 0 < count < 100:
            assert one[inside].min() >= one[~inside].max()


def test_top_mask_of_an_imagenet_image():
    assert top_mask(random_features(4, (1, 1, 256, 256))[0], 0.15).sum() == 9830


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_bad_share(share):
    with pytest.raises(ValueError, match="need a share"):
        top_mask(MAPS, share)


@pytest.mark.parametrize("value", [0.3, 1e-4, 1e6])
def test_minmax_of_a_constant_map_stays_zero_when_enlarged(value):
    """Rounding of the resize must not be stretched to a mask."""
    assert attention_maps([torch.full((1, 16, 8, 8), value)], (32, 32), "minmax").max() == 0


def test_scattered_keeps_the_share_and_nothing_else():
    """As many pixels per image; each pixel as often as any other, whatever the mask was; anew in every sample."""
    mask = torch.zeros(4000, 1, 4, 4)
    mask[::2, :, 0, :3] = 1  # 3 pixels of every other image, all of the rest
    mask[1::2] = 1
    ids = range(len(mask))
    found = scattered(mask, Streams(ids, 0, "adv"))
    assert torch.equal(found.sum((1, 2, 3)), mask.sum((1, 2, 3)))
    often = found[::2].mean(0)  # of 2000 images: a share of 3/16, standard error .0087
    assert (often - 3 / 16).abs().max() < 4.5 * 0.0087
    again = scattered(mask, Streams(ids, 1, "adv"))
    assert (found[::2] != again[::2]).flatten(1).any(dim=1).float().mean() > 0.99  # 1 in 560 by chance


def test_a_mask_of_some_taps():
    """The mask of all taps is the union of those of the single taps (Eq. 4), and positions are checked."""
    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    classifier = build(composed("purifier=none", "protocol.images=2")).arms["defended"].scored.classifier
    features = classifier.features(x)
    single = [threshold_mask(attention_maps(chosen(features, [k]), (16, 16)), 0.5) for k in (1, 2, 3, 4)]
    assert torch.equal(torch.stack(single).amax(0), threshold_mask(attention_maps(features, (16, 16)), 0.5))
    pair = threshold_mask(attention_maps(chosen(features, [2, 4]), (16, 16)), 0.5)
    assert torch.equal(pair, torch.maximum(single[1], single[3]))
    assert not torch.equal(pair, threshold_mask(attention_maps(features, (16, 16)), 0.5))
    for wrong in ([], [0, 1], [5], [2, 1], [1, 1]):
        with pytest.raises(ValueError, match="need taps as rising positions from 1 to 4"):
            chosen(features, wrong)
