"""PixelDefend: its network sees only what came before, and its decoding is the greedy one of the paper."""

import math

import pytest
import torch

from dp.diffusion.sampling import to_pm1
from dp.nets.masked_conv import MaskedConvNet
from dp.purifiers.pixeldefend import PixelDefend
from dp.rng import Streams
from dp.runs.build import build
from dp.runs.compose import make
from tests.helpers.compose import composed

LEVELS = 9


def network(channels: int = 1, width: int = 12, blocks: int = 2) -> MaskedConvNet:
    torch.manual_seed(0)
    return MaskedConvNet(channels, LEVELS, width, blocks).double().requires_grad_(False)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_value_depends_on_all_before_it_within_reach_and_on_no_other(channels):
    net, x = network(channels, 24 * channels), to_pm1(images(1, channels, 9, 11)).requires_grad_()
    out, (i, j) = net(x), (5, 5)
    for k in range(channels):
        (gradient,) = torch.autograd.grad(out[:, :, k, i, j].square().sum(), x, retain_graph=True)
        places = [tuple(place) for place in gradient[0].nonzero().tolist()]
        assert all((r, q, c) < (i, j, k) for c, r, q in places)
        assert max(max(abs(r - i), abs(q - j)) for _, r, q in places) == net.reach
        assert {(c, i, j) for c in range(k)} <= {*places}
        assert {(c, i - 1, j) for c in range(channels)} <= {*places}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_logits_of_one_pixel_are_those_of_the_whole_image(channels):
    """At every place, also at the borders of an image that is smaller than what matters."""
    net, x = network(channels), to_pm1(images(2, channels, 6, 7))
    whole = net(x)
    for i in range(6):
        for j in range(7):
            torch.testing.assert_close(net.at(x, i, j), whole[..., i, j])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_result_is_the_greedy_decoding(channels):
    """Of the whole image, in one call: every value is the most probable one in its box given the result before it."""
    net, x = network(channels), images(3, channels, 6, 7)
    model = PixelDefend(net, reach=2)
    out = model(x, None, None, Streams(range(3), 0, "a"))  # pyright: ignore[reportArgumentType]
    logits, given, found = net(to_pm1(out)), model.quantized(x), (out * (LEVELS - 1)).round().long()
    inside = (torch.arange(LEVELS).view(1, -1, 1, 1, 1) - given[:, None]).abs() <= 2
    assert torch.equal(logits.masked_fill(~inside, -torch.inf).argmax(1), found)
    assert not torch.equal(found, given)
    assert model.nfe == channels * 42


def test_without_reach_the_image_is_only_rounded_down():
    x = images(2, 1, 5, 5)
    out = PixelDefend(network(), reach=0)(x, None, None, Streams(range(2), 0, "a"))  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(out, (x * 8).floor() / 8)


@pytest.mark.parametrize("levels", [33, 256])
def test_a_level_stays_a_level(levels):
    model = PixelDefend(MaskedConvNet(1, levels, 4, 1), reach=0)
    values = torch.arange(levels) / (levels - 1)  # float32
    assert torch.equal(model.quantized(values.view(1, 1, 1, -1)).flatten(), torch.arange(levels))


def test_it_has_no_gradient_and_says_which_attack_to_take():
    evaluation = build(composed("purifier=pixeldefend", "protocol.images=2"))
    model, subset = evaluation.arms["defended"].scored, evaluation.subset
    assert evaluation.threat.grad == "bpda"
    with pytest.raises(ValueError, match=r"set threat_model\.grad=bpda"):
        model.loss_gradient(subset.x, subset.y, Streams(subset.ids, 0, "a"), 1)
    _, gradient = model.gradient_mode("bpda").loss_gradient(subset.x, subset.y, Streams(subset.ids, 0, "a"), 1)
    leaf = model.purify(subset.x, Streams(subset.ids, 0, "a")).requires_grad_()
    loss = torch.nn.functional.cross_entropy(model.classifier(leaf), subset.y, reduction="sum")
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, leaf)[0])


def test_the_embedded_network_knows_digits_and_the_purifier_keeps_them():
    """Far fewer nats a value than a uniform choice of 33 levels, log 33 = 3.5."""
    config = composed("purifier=pixeldefend", "protocol.images=64")
    evaluation, model = build(config), make(config["purifier"])
    x, subset = evaluation.subset.x, evaluation.subset
    levels = model.quantized(x)
    logits = model.net(to_pm1(model.image(levels)).float())
    assert torch.nn.functional.cross_entropy(logits, levels).item() < 0.4 * math.log(33)
    with torch.no_grad():
        out = evaluation.arms["defended"].scored(x, Streams(subset.ids, 0, "a"))
    assert (out.argmax(1) == subset.y).float().mean() > 0.95


def test_bad_values():
    with pytest.raises(ValueError, match="need reach >= 0"):
        PixelDefend(network(), reach=-1)
    with pytest.raises(ValueError, match="need width as a multiple of 2 x channels"):
        MaskedConvNet(3, LEVELS, 20, 1)
