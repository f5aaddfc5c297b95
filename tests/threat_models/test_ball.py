"""The threat model: what a budget says, and that every candidate stays within it."""

import math

import pytest
import torch
from scipy import stats

from dp.contracts import threat_model as contract
from dp.rng import Streams
from dp.runs.build import build, defense
from dp.runs.compose import make
from dp.threat_models.ball import BALLS, ThreatModel, parse_eps
from tests.helpers.compose import composed, home, options
from tests.helpers.contract import assert_held, in_one_line

NORMS = ["linf", "l2"]
EPS = {"linf": 8 / 255, "l2": 0.5}


def threat(norm):
    return ThreatModel(norm=norm, eps=EPS[norm])


def norm_of(name):
    return composed(f"threat_model={name}")["threat_model"]["norm"]


def pictures(seed, images=16, dtype=torch.float32):
    """Images with many pixels at the very bounds, as real ones have."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(images, 3, 8, 8, generator=generator, dtype=dtype) - 0.5).clamp(0, 1)


def size(delta, norm):
    delta = delta.double().flatten(1)
    return delta.abs().amax(1) if norm == "linf" else delta.square().sum(1).sqrt()


def assert_feasible(x_adv, x, norm, eps, tolerance=1e-6):
    assert (size(x_adv.double() - x.double(), norm) <= eps + tolerance).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


@pytest.mark.parametrize("name", options("threat_model"))
def test_contract(name, images, record_property):
    """Random points are feasible, depend on their key alone and are admitted; the clean image is, at distance 0."""
    config = composed(f"threat_model={name}", *home(name), "purifier=none", "protocol.images=6")
    with in_one_line(f"threat model {name}"):
        model = make(config["threat_model"], modules=config["plugins"]["modules"])
        model = model.seen_by(defense(config, "cpu").classifier)
        images = build(config).subset if home(name) else images
    assert_held(contract.failures(model, images.x, images.ids), "threat_model", config, record_property)


@pytest.mark.parametrize("name", [name for name in options("threat_model") if norm_of(name) in BALLS])
def test_projections_are_feasible(name, images):
    """Under linf and l2, any point is moved into the ball and the box, and a feasible one stays."""
    config = composed(f"threat_model={name}", *home(name), "purifier=none", "protocol.images=6")
    model = make(config["threat_model"], modules=config["plugins"]["modules"])
    x = build(config).subset.x if home(name) else images.x
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.project(x, x), x)
    for far in (0.01, 0.3, 5.0):
        for point in (x + far * noise, model.ascend(x, noise, far)):
            found = model.project(point, x)
            assert_feasible(found, x, model.norm, parse_eps(config["threat_model"]["eps"]))
            torch.testing.assert_close(model.distance(found, x), size(found.double() - x.double(), model.norm))
            assert torch.equal(model.project(found, x), found)


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 0.03137254901960784), (" 4 / 255 ", 4 / 255), ("0.5", 0.5), (0.5, 0.5), (1, 1.0), ("1e-3", 0.001)],
)
def test_eps(text, value):
    assert parse_eps(text) == value
    assert ThreatModel(norm="linf", eps=text).eps == value


BAD_TEXT = ["8/255/2", "8/", "-8/-255", "/255", "1/0", "", "eight", "8:255", "0x8/255", None]
NOT_POSITIVE = [0, 0.0, "0", "0/255", "1/inf", -0.1, "-8/255", "8/-255"]
NOT_FINITE = ["nan", float("nan"), "inf", float("inf")]


@pytest.mark.parametrize("text", [*BAD_TEXT, *NOT_POSITIVE, *NOT_FINITE])
def test_bad_eps(text):
    for read in (parse_eps, lambda eps: ThreatModel(norm="l2", eps=eps)):
        with pytest.raises(ValueError, match="need eps"):
            read(text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"norm": "l1"}, "need norm"),
        ({"norm": "L2"}, "need norm"),
        ({"grad": ""}, "need grad"),
        ({"grad": None}, "need grad"),
    ],
)
def test_bad_threat_model(settings, words):
    with pytest.raises(ValueError, match=words):
        ThreatModel(**{"norm": "linf", "eps": 0.1} | settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [0.0, 1e-8, 0.01, 0.3, 5.0, 1e6, 1e25])
@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_feasible_and_idempotent(norm, far, dtype):
    x = pictures(0, dtype=dtype)
    x_adv = x + far * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    once = threat(norm).project(x_adv, x)
    assert once.dtype == dtype
    assert_feasible(once, x, norm, EPS[norm])
    assert torch.equal(threat(norm).project(once, x), once)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_leaves_feasible_points_alone(norm):
    x = pictures(0)
    signs = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).sign()
    inside = (x + 0.99 * EPS[norm] * signs / (1 if norm == "linf" else x[0].numel() ** 0.5)).clamp(0, 1)
    assert torch.equal(threat(norm).project(inside, x), inside)
    assert torch.equal(threat(norm).project(x, x), x)


def test_projection_onto_the_l2_ball_keeps_the_direction():
    """Where the box is inactive, the nearest point: x + eps d / |d|; a single far image does not shrink its mates."""
    x = torch.full((3, 1, 4, 4), 0.5, dtype=torch.float64)
    d = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d *= torch.tensor([0.1, 1.0, 1e8]).view(3, 1, 1, 1) / size(d, "l2").view(3, 1, 1, 1)
    expected = torch.stack([d[0], 0.5 * d[1], 0.5e-8 * d[2]]) + x
    torch.testing.assert_close(threat("l2").project(x + d, x), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("x", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("far", [-2.0, -0.001, 0.0, 0.02, 0.9])
def test_projection_onto_the_linf_ball_is_a_clamp(x, far):
    eps = EPS["linf"]
    found = threat("linf").project(torch.full((1, 1, 1, 1), x + far, dtype=torch.float64), torch.full((1, 1, 1, 1), x))
    assert found.item() == pytest.approx(min(max(x + far, x - eps, 0), x + eps, 1), abs=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_gradient_does_not_move(norm):
    x = pictures(0)
    assert torch.equal(threat(norm).ascend(x, torch.zeros_like(x), 0.1), x)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-20, 1e-30, 1e20])
@pytest.mark.parametrize("norm", NORMS)
def test_ascend_does_not_depend_on_the_gradients_size(norm, scale):
    """One image's gradient is zero, and so is half of another's: neither must disturb the rest."""
    g = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g[1] = 0
    g[2, :, :4] = 0
    step = threat(norm).ascend(torch.zeros_like(g, dtype=torch.float32), (g * scale).float(), 0.25)
    unit = g.sign() if norm == "linf" else g / g.flatten(1).norm(dim=1).clamp(min=1e-300).view(-1, 1, 1, 1)
    torch.testing.assert_close(step, (0.25 * unit).float(), rtol=1e-5, atol=1e-7)


def test_ascend_is_not_projected():
    x = torch.ones(1, 1, 2, 2)
    assert torch.equal(threat("linf").ascend(x, torch.ones_like(x), 0.5), torch.full_like(x, 1.5))


@pytest.mark.parametrize("kind", ["random_start", "noise"])
@pytest.mark.parametrize("norm", NORMS)
def test_random_candidates_are_feasible(norm, kind):
    x = pictures(0, images=64)
    found = getattr(threat(norm), kind)(x, Streams(range(64), 3, "null"))
    assert_feasible(found, x, norm, EPS[norm])
    assert (size(found - x, norm) > 0).all()
    assert torch.equal(found, getattr(threat(norm), kind)(x, Streams(range(64), 3, "null")))
    other = getattr(threat(norm), kind)(x, Streams(range(64), 4, "null"))
    assert (found != other).flatten(1).any(1).all()


@pytest.mark.parametrize("kind", ["random_start", "noise"])
def test_linf_candidates_are_uniform(kind):
    x = torch.full((50, 3, 8, 8), 0.5)
    delta = getattr(threat("linf"), kind)(x, Streams(range(50), 3, "null")) - x
    assert stats.kstest((delta / EPS["linf"]).flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 2, 2), (3, 4, 4)])
def test_random_start_fills_the_l2_ball(shape):
    """The volume within radius r grows like r^d, and the direction is uniform on the sphere."""
    x = torch.full((4000, *shape), 0.5)
    eps, d = 0.4, math.prod(shape)
    delta = (ThreatModel("l2", eps).random_start(x, Streams(range(4000), 3, "attack")) - x).double().flatten(1)
    share = (delta.norm(dim=1) / eps) ** d
    assert stats.kstest(share.numpy(), stats.uniform.cdf).pvalue > 1e-3
    projection = (delta[:, 0] / delta.norm(dim=1)).square()  # Beta(1/2, (d-1)/2) on a sphere
    assert stats.kstest(projection.numpy(), stats.beta(0.5, (d - 1) / 2).cdf).pvalue > 1e-3
    assert stats.binomtest(int((delta[:, 0] > 0).sum()), 4000).pvalue > 1e-3
    assert abs(stats.spearmanr(share, delta[:, 0])[0]) < 5 / 4000**0.5  # radius and direction are independent


def test_l2_noise_lies_on_the_sphere():
    x = torch.full((64, 3, 8, 8), 0.5)
    delta = threat("l2").noise(x, Streams(range(64), 3, "null")) - x
    torch.testing.assert_close(size(delta, "l2"), torch.full((64,), 0.5, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("norm", "lengths"), [("linf", [0.0, 0.3, 0.1]), ("l2", [0.0, 0.5, 0.2])])
def test_distance(norm, lengths):
    x = torch.full((3, 1, 2, 2), 0.5)
    delta = torch.tensor([[0, 0, 0, 0], [0.3, -0.2, 0.2, -(0.08**0.5)], [0.1, -0.1, 0.1, -0.1]]).view(3, 1, 2, 2)
    found = threat(norm).distance(x + delta, x)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(lengths, abs=1e-7)


def test_distance_is_not_rounded_to_single_precision():
    x = torch.full((1, 1, 2, 2), 1.0)
    x_adv = torch.full_like(x, 1 - 2**-20)
    assert threat("linf").distance(x_adv, x).item() == 2**-20
    assert threat("l2").distance(x_adv, x).item() == 2**-19
