"""A ball in a region: the perturbation is zero elsewhere, by projection, by distance and in every attack's result."""

import pytest
import torch

from dp.attacks.pgd_eot import PGD
from dp.contracts import threat_model as contract
from dp.output.published import published_rows
from dp.output.report import caveat_lines
from dp.output.row_table import threat_words
from dp.rng import Streams
from dp.runs.build import attacker, build
from dp.runs.caveats import caveats_of
from dp.runs.compose import make
from dp.threat_models.ball import ThreatModel
from dp.threat_models.region import RegionModel
from tests.helpers.compose import composed, setup

EPS = 0.1


def left(x: torch.Tensor) -> torch.Tensor:
    """The left half of images of four columns."""
    mask = torch.zeros_like(x[:, :1])
    mask[..., :2] = 1
    return mask


def pictures() -> torch.Tensor:
    return torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("outside", [False, True])
def test_projection_is_the_balls_in_the_region_and_the_image_elsewhere(outside):
    model, x = RegionModel("linf", EPS, region=left, outside=outside), pictures()
    far = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found, ball = model.project(far, x), ThreatModel("linf", EPS).project(far, x)
    inside, rest = (slice(2, 4), slice(0, 2)) if outside else (slice(0, 2), slice(2, 4))
    assert torch.equal(found[..., inside], ball[..., inside])
    assert torch.equal(found[..., rest], x[..., rest])


def test_a_pixel_elsewhere_is_infinitely_far():
    model, x = RegionModel("linf", EPS, region=left), pictures()
    near, stray = x.clone(), x.clone()
    near[0, 0, 0, 1] += 0.05
    stray[1, 0, 0, 2] += 1e-6
    assert model.distance(near, x).tolist() == pytest.approx([0.05, 0, 0], abs=1e-7)
    assert model.distance(stray, x)[1] == torch.inf


class Leaky(RegionModel):
    """Forgets the region when it projects."""

    def project(self, x_adv, x):
        return ThreatModel.project(self, x_adv, x)


def test_the_contract_finds_noise_that_leaves_the_region():
    ids = torch.arange(3)
    assert contract.failures(RegionModel("linf", EPS, region=left), pictures(), ids) == []
    found = contract.failures(Leaky("linf", EPS, region=left), pictures(), ids)
    assert "feasible" in {failure.name for failure in found}
    assert any("inf" in failure.what for failure in found)


class Linear:
    """A defense whose loss is the sum of the pixels."""

    def loss_gradient(self, x, y, rng, samples, objective):
        return x.sum(dim=(1, 2, 3)), torch.ones_like(x)


def test_pgd_reaches_the_corner_of_the_region():
    model, x, attack = RegionModel("linf", EPS, region=left), pictures(), PGD(10, 1, select="last")
    y, rng = torch.zeros(3, dtype=torch.long), Streams([0, 1, 2], 0, "attack")
    state = attack.start(Linear(), x, y, model, rng)
    for k in range(attack.steps):
        state = attack.step(Linear(), state, x, y, model, rng.draw(k))
    corner = x.clone()
    corner[..., :2] = (x[..., :2] + EPS).clamp(max=1)
    torch.testing.assert_close(state.x_adv, corner, rtol=0, atol=1e-6)


def test_no_region_and_the_other_norm():
    with pytest.raises(ValueError, match=r"need threat_model\.region"):
        RegionModel("linf", EPS)
    with pytest.raises(ValueError, match="need norm linf"):
        RegionModel("l2", EPS, region=left)


def test_a_package_that_knows_no_region_is_refused():
    words = ("dataset=canvas", "threat_model=inside_box")
    with pytest.raises(
        ValueError, match=r"attack=autoattack_upstream.*threat_model=inside_box: use attack=autoattack$"
    ):
        attacker(composed(*words, "attack=autoattack_upstream"))
    assert attacker(composed(*words, "attack=strict"))[1].norm == "linf"


def test_the_row_says_so_and_has_no_published_figure():
    config = composed("dataset=canvas", "threat_model=outside_box", "purifier=hetero_box", "protocol.images=4")
    assert threat_words(config) == "linf 10/255, outside_box"
    assert threat_words(composed("dataset=canvas")) == "linf 10/255"
    assert published_rows(config) == []
    asked = setup("dataset=canvas", "threat_model=outside_box", "purifier=hetero_box", "protocol.images=4")
    lines = caveat_lines(config, caveats_of(asked, build(config)).as_data())
    assert any("an oracle" in line for line in lines)
    assert any("not for an l_p column" in line for line in lines)


def test_both_models_share_the_frame():
    """What one may change, the other may not."""
    nodes = [composed("dataset=canvas", f"threat_model={k}_box")["threat_model"] for k in ("inside", "outside")]
    x = build(composed("dataset=canvas", "purifier=none", "protocol.images=4")).subset.x
    inside, outside = (make(node).allowed(x) for node in nodes)
    assert torch.equal(inside, ~outside)
    assert 0.2 < float(inside.float().mean()) < 0.45
