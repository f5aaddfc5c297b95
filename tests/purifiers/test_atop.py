"""AToP: its transforms against what they say, with networks whose result is known, and its embedded network."""

import pytest
import torch
from torch import nn

from dp.purifiers.atop import Atop
from dp.rng import Streams
from dp.runs.build import build
from tests.helpers import parity
from tests.helpers.compose import composed

GIVEN = {"noise": 0.25, "missing": 0.25, "block": 2}


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Echo(nn.Module):
    """Returns its input: the image without the hidden pixels, and the mask."""

    def __init__(self):
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x, label):
        self.seen.append(x)
        return x


def purified(x, transform, net=None, rng=None, **changed):
    model = Atop(net or Echo(), transform, **{**GIVEN, **changed}, clamp="none")
    return model(x, None, None, rng or Streams(range(len(x)), 0, "a")), model  # pyright: ignore[reportArgumentType]


def test_rt1_hides_a_quarter_of_the_blocks():
    """Hidden pixels are zero in [-1,1], the others are as they were."""
    x = images(3, 1, 8, 8)
    out, model = purified(x, "rt1")
    hidden = (out - x).abs() > 1e-12
    assert (hidden.sum(dim=(1, 2, 3)) == 16).all()
    torch.testing.assert_close(out[hidden], torch.full((48,), 0.5, dtype=torch.float64))
    blocks = hidden.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert (blocks == blocks[..., :1]).all()
    assert not torch.equal(hidden[0], hidden[1])
    assert model.nfe == 1


def test_rt2_adds_noise_before():
    x, n = images(2, 3, 8, 8), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    script = parity.Script([n], [images(2, 16)])
    out, _ = purified(x, "rt2", rng=script)
    hidden = ((out - 0.5).abs() < 1e-12).all(dim=1, keepdim=True)
    assert (hidden.sum(dim=(1, 2, 3)) == 16).all()
    torch.testing.assert_close(out, torch.where(hidden, 0.5, x + 0.25 * n))


def test_rt3_leaves_no_pixel_its_own_value():
    """Every pixel comes from the pass that did not see it: with a network that returns its input, nothing is left."""
    net = Echo()
    out, model = purified(images(2, 3, 8, 8), "rt3", net)
    torch.testing.assert_close(out, torch.full_like(out, 0.5))
    assert model.nfe == 4
    assert torch.equal(torch.stack(net.seen)[:, :, 3:].sum(0), torch.ones(2, 1, 8, 8, dtype=torch.float64))


def test_rt3_has_masks_for_every_pixel_at_any_share():
    net = Echo()
    _, model = purified(images(2, 1, 8, 8), "rt3", net, missing=0.3)
    assert model.nfe == 4
    assert torch.equal(torch.stack(net.seen)[:, :, 1:].sum(0), torch.ones(2, 1, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("transform", ["rt1", "rt2", "rt3"])
def test_every_form_of_the_embedded_network_keeps_what_a_digit_is(transform):
    evaluation = build(composed("purifier=atop", f"purifier.transform={transform}", "protocol.images=128"))
    model, subset = evaluation.arms["defended"].scored, evaluation.subset
    with torch.no_grad():
        logits = model(subset.x, Streams(subset.ids, 0, "a"))
    assert (logits.argmax(1) == subset.y).float().mean() > 0.9


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"transform": "rt4"}, "need transform among rt1, rt2, rt3"),
        ({"missing": 1.0}, "0 < missing < 1"),
        ({"noise": -1.0}, "noise >= 0"),
        ({"block": 3}, "multiples of block=3"),
    ],
)
def test_bad_values(changed, words):
    with pytest.raises(ValueError, match=words):
        purified(images(1, 1, 8, 8), **{"transform": "rt1", **changed})
