"""Flows, the perceptual distance, their threat models, and the two attacks that work under them."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.adam import adam, moments
from dp.attacks import low_frequency
from dp.attacks.low_frequency import LowFrequency, closeness, first_logits, patches, smooth
from dp.attacks.none import NoAttack
from dp.attacks.stadv import StAdv
from dp.attacks.through import Through
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.evaluation.evaluate import null_control
from dp.output import report
from dp.output.published import published_rows
from dp.output.row_table import row_table
from dp.purifiers import none
from dp.rng import Streams
from dp.runs.build import build
from dp.runs.compose import make
from dp.threat_models.ball import ThreatModel
from dp.threat_models.flow import FlowModel, roughness, warp
from dp.threat_models.perceptual import Perceptual, PerceptualModel
from tests.helpers.audited import NONE
from tests.helpers.compose import composed


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(images=3, channels=2, height=8, width=6, dtype=torch.float32, seed=0) -> Tensor:
    x = 2 * torch.rand(images, channels, height, width, generator=generator(seed), dtype=dtype) - 0.5
    return x.clamp(0, 1)


def flows(x: Tensor, size: float, seed=1) -> Tensor:
    return size * (2 * torch.rand(len(x), 2, *x.shape[2:], generator=generator(seed), dtype=x.dtype) - 1)


class Two(nn.Module):
    """Two convolutions with a tap behind each, then ten classes."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        for k, p in enumerate(self.parameters()):
            p.data = torch.randn(p.shape, generator=generator(k)) / 3
        self.last = torch.randn(6, 10, generator=generator(9))

    def forward(self, x):
        return self.two(self.one(x).relu()).relu().mean(dim=(2, 3)) @ self.last.to(x)


def seeing() -> Classifier:
    return Classifier(Two(), taps=("one", "two"))


class Proven(NamedTuple):
    x_adv: Tensor
    proof: Tensor


class Bare(NamedTuple):
    x_adv: Tensor


def test_no_flow_changes_nothing():
    for x in (pictures(), pictures().to(memory_format=torch.channels_last)):
        still = warp(x, x.new_zeros(len(x), 2, *x.shape[2:]))
        assert torch.equal(still, x)
        assert still.stride() == x.stride()


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 2), (-2, 1), (-1, -3)])
def test_whole_pixels_are_a_roll(right, down):
    """Away from the edge; there the edge pixel is repeated."""
    x = pictures(height=12, width=10)
    flow = torch.tensor([right / 5, down / 6]).view(1, 2, 1, 1).expand(3, 2, 12, 10)  # halves of the sides
    rolled = torch.roll(x, (-down, -right), (2, 3))
    torch.testing.assert_close(warp(x, flow)[..., 3:-3, 3:-3], rolled[..., 3:-3, 3:-3], rtol=0, atol=1e-5)
    far = warp(x, torch.tensor([50.0, -50.0]).view(1, 2, 1, 1).expand(3, 2, 12, 10))
    assert torch.equal(far, x[..., :1, -1:].expand_as(x))


def test_a_flow_is_torchs_grid_sample_with_its_border():
    x = pictures()
    flow = flows(x, 0.4)
    grid = F.affine_grid(torch.eye(2, 3).expand(3, 2, 3), list(x.shape), align_corners=False)
    there = F.grid_sample(x, grid + flow.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
    torch.testing.assert_close(warp(x, flow), there, rtol=0, atol=1e-5)


def test_a_flow_never_leaves_the_range_of_the_image():
    x = pictures(images=64, seed=3)
    moved = warp(x, flows(x, 3.0))
    assert (moved.amin(dim=(1, 2, 3)) >= x.amin(dim=(1, 2, 3))).all()
    assert (moved.amax(dim=(1, 2, 3)) <= x.amax(dim=(1, 2, 3))).all()


@pytest.mark.parametrize("what", ["warp", "roughness"])
def test_slopes_in_the_flow_are_central_differences(what):
    x = pictures(dtype=torch.float64)
    flow = flows(x, 0.3).requires_grad_()
    weights = torch.randn(x.shape, generator=generator(5), dtype=x.dtype)
    value = (lambda f: (weights * warp(x, f)).sum()) if what == "warp" else (lambda f: roughness(f).sum())
    (slope,) = torch.autograd.grad(value(flow), flow)
    h, along = 1e-6, torch.randn(flow.shape, generator=generator(6), dtype=x.dtype)
    with torch.no_grad():
        difference = (value(flow + h * along) - value(flow - h * along)) / (2 * h)
    assert float((slope * along).sum()) == pytest.approx(float(difference), rel=1e-6)


def test_an_image_at_the_bounds_has_a_slope_at_zero_flow():
    """Black and white pixels alone: the cut back to the range must not hide what the flow would do."""
    x = (pictures(channels=1) > 0.5).double()
    flow = x.new_zeros(3, 2, 8, 6).requires_grad_()
    (slope,) = torch.autograd.grad(warp(x, flow)[..., 2:-2, 2:-2].sum(), flow)
    edges = x[..., 2:-2, 3:-1] - x[..., 2:-2, 2:-2]
    torch.testing.assert_close(slope[:, :1, 2:-2, 2:-2], edges * 3, rtol=0, atol=1e-12)


def test_roughness_by_hand():
    """A flow of its own at one pixel: four neighbors, each pair counted from both sides."""
    flow = torch.zeros(2, 2, 5, 5, dtype=torch.float64)
    flow[1, 0, 2, 2], flow[1, 1, 2, 2] = 0.3, -0.4
    still, moved = roughness(flow).tolist()
    assert still == pytest.approx(0, abs=2e-3)  # 80 roots of the guard
    assert moved - still == pytest.approx(8 * 0.5, abs=1e-4)


def test_the_flow_model_admits_what_it_can_check():
    x, threat = pictures(), FlowModel(eps=0.2)
    flow = flows(x, 0.2)
    x_adv, distance = threat.admit(Proven(warp(x, flow), flow), x)
    assert torch.equal(x_adv, warp(x, flow))
    assert distance.tolist() == flow.double().abs().amax(dim=(1, 2, 3)).tolist()
    same, none_at_all = threat.admit(Proven(x, threat.unchanged(x)), x)
    assert torch.equal(same, x)
    assert none_at_all.tolist() == [0, 0, 0]


def test_the_flow_model_rejects_a_lying_state():
    x, threat = pictures(), FlowModel(eps=0.2)
    flow = flows(x, 0.2)
    wide, nan = flow.clone(), flow.clone()
    wide[1, 0, 2, 2], nan[2, 1, 0, 0] = 0.21, torch.nan
    off = warp(x, flow)
    off[2, 0, 3, 3] += 0.01
    lies = {
        "need a flow within": [Proven(warp(x, wide), wide), Proven(warp(x, flow), nan)],
        "need attacked images that are their flow's warp": [
            Proven(off, flow),
            Proven(warp(x, flow), threat.unchanged(x)),
            Proven(x * torch.nan, flow),
        ],
        "need a flow \\(3, 2, 8, 6\\)": [Proven(x, x.new_zeros(3, 0)), Proven(warp(x, flow), flow[:, :, :4])],
    }
    for words, states in lies.items():
        for state in states:
            with pytest.raises(ValueError, match=words):
                threat.admit(state, x)


def test_an_image_alone_says_nothing_about_its_flow():
    x, threat = pictures(), FlowModel()
    for ask in (threat.project, threat.distance, lambda a, b: threat.ascend(a, b, 0.1)):
        with pytest.raises(ValueError, match="threat_model=stadv"):
            ask(x, x)


def test_the_null_control_moves_by_random_flows():
    x, threat = pictures(channels=1), FlowModel(eps=0.2)
    model, y = Defended(none.purify, None, seeing()), torch.zeros(3, dtype=torch.long)
    null = null_control(StAdv(iterations=5, eot=2))
    assert (null.steps, null.eot, null.select) == (5, 2, "best")
    rng = Streams(range(3), 0, "null")
    state = null.start(model, x, y, threat, rng)
    for i in range(null.steps):
        state = null.step(model, state, x, y, threat, rng.draw(1 + i))
    _, distance = threat.admit(state, x)
    assert (distance > 0.15).all()
    candidates = [threat.noise(x, rng.draw(1 + i)) for i in range(5)]
    losses = torch.stack([model.loss(c, y, rng, 1) for c in candidates])
    torch.testing.assert_close(model.loss(state.x_adv, y, rng, 1), losses.amax(0))


def test_the_distance_by_hand():
    x, other = pictures(channels=1), pictures(channels=1, seed=7)
    classifier, net = seeing(), Two()
    expected = torch.zeros(3, dtype=torch.float64)
    for weight, layer in ((0.25, lambda z: net.one(z)), (2.0, lambda z: net.two(net.one(z).relu()))):
        a, b = (F.normalize(layer(z).double(), dim=1) for z in (x, other))
        per_pixel = 2 - 2 * (a * b).sum(dim=1)  # |a - b|^2 of unit vectors
        expected += weight * per_pixel.mean(dim=(1, 2))
    found = Perceptual(classifier, weights=[0.25, 2.0])(x, other)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    halves = Perceptual(classifier, weights=[0.5, 0.5])(x, other)
    assert torch.equal(Perceptual(classifier)(x, other), halves)


def test_the_distance_is_one():
    """Zero on equal images, symmetric, and growing with the noise."""
    x, other = pictures(channels=1), pictures(channels=1, seed=7)
    distance = Perceptual(seeing())
    assert distance(x, x.clone()).tolist() == [0, 0, 0]
    torch.testing.assert_close(distance(x, other), distance(other, x), rtol=1e-12, atol=0)
    noise = torch.randn(x.shape, generator=generator(2))
    rising = torch.stack([distance(x + size * noise, x) for size in (0.0, 0.01, 0.05, 0.2, 1.0)])
    assert (rising.diff(dim=0) > 0).all()


def test_the_distances_slope_is_a_central_difference():
    classifier = seeing().double()
    x, other = pictures(channels=1, dtype=torch.float64), pictures(channels=1, dtype=torch.float64, seed=7)
    distance, leaf = Perceptual(classifier), other.clone().requires_grad_()
    (slope,) = torch.autograd.grad(distance(leaf, x).sum(), leaf)
    h, along = 1e-6, torch.randn(x.shape, generator=generator(6), dtype=x.dtype)
    difference = (distance(other + h * along, x) - distance(other - h * along, x)).sum() / (2 * h)
    assert float((slope * along).sum()) == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, 1.0, 1.0]])
def test_weights_that_do_not_fit(weights):
    with pytest.raises(ValueError, match="need 2 weights >= 0"):
        Perceptual(seeing(), weights)


def test_a_distance_needs_a_classifier_with_taps():
    with pytest.raises(ValueError, match="need taps"):
        Perceptual(Classifier(Two()))
    with pytest.raises(ValueError, match="call seen_by"):
        PerceptualModel().distance(pictures(), pictures())
    ball = ThreatModel("linf", 0.1)
    assert ball.seen_by(seeing()) is ball


@pytest.mark.parametrize("far", [0.0, 0.02, 0.5, 50.0])
def test_projection_within_the_distance(far):
    x = pictures(channels=1)
    threat = PerceptualModel(eps=0.05).seen_by(seeing())
    given = x + far * torch.randn(x.shape, generator=generator(1))
    given[0] = x[0]  # one that is near already
    x_adv, distance = threat.admit(Bare(given), x)
    assert (distance <= 0.05).all()
    assert torch.equal(distance, threat.distance(x_adv, x))
    assert torch.equal(x_adv[0], x[0])
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    if far >= 0.5:
        assert (distance[1:] > 0.048).all()


def test_low_frequency_noise_is_smooth_and_as_far_as_it_may_be():
    x = torch.full((8, 1, 16, 16), 0.5)
    threat = PerceptualModel(eps=0.02).seen_by(seeing())
    delta = threat.noise(x, Streams(range(8), 0, "null")) - x
    assert (threat.distance(x + delta, x) <= 0.02).all()
    assert (threat.distance(x + delta, x) > 0.018).all()
    power = torch.fft.fft2(delta).abs().square()[:, 0]
    low = power[:, [0, 1, 2, -1, -2]][:, :, [0, 1, 2, -1, -2]].sum(dim=(1, 2))
    assert (low / power.sum(dim=(1, 2)) > 0.8).all()


def test_filters_begin_as_the_identity():
    x = pictures(channels=3, height=16, width=12)
    for kernel in ((5, 5), (3, 7)):
        same = smooth(x, first_logits(kernel, x), closeness(x, kernel, 0.05))
        torch.testing.assert_close(same, x, rtol=0, atol=1e-3)
    attack = LowFrequency(3, 1, kernels=[[5, 5], [3, 3]])
    parameters = (first_logits((5, 5), x), first_logits((3, 3), x), torch.zeros_like(x))
    torch.testing.assert_close(attack.image(x, parameters), x, rtol=0, atol=2e-3)


def test_a_filter_by_hand():
    """Mirrored edges, weights even in both directions, times those of the color, normalized."""
    x = pictures(channels=3, dtype=torch.float64)
    logits = torch.randn(3, 2, 3, 8, 6, generator=generator(4), dtype=torch.float64)  # a kernel of 3 x 5
    found = smooth(x, logits, closeness(x, (3, 5), 0.3))
    for b, i, j in ((0, 0, 0), (1, 4, 3), (2, 7, 5)):
        total, weight = torch.zeros(3, dtype=torch.float64), 0.0
        for down in (-1, 0, 1):
            for right in (-2, -1, 0, 1, 2):
                at = [abs(i + down), abs(j + right)]
                at = [k if k < side else 2 * (side - 1) - k for k, side in zip(at, (8, 6), strict=True)]
                d = float((x[b, :, at[0], at[1]] - x[b, :, i, j]).abs().sum())
                w = float(logits[b, 1 - abs(down), 2 - abs(right), i, j].exp()) * 2.718281828459045 ** (-(d**2) / 0.18)
                total, weight = total + w * x[b, :, at[0], at[1]], weight + w
        torch.testing.assert_close(found[b, :, i, j], total / weight, rtol=1e-9, atol=0)


def test_patches_have_the_pixel_in_their_middle():
    x = pictures()
    assert torch.equal(patches(x, (3, 5))[:, :, 7], x)
    assert torch.equal(patches(x, (3, 5))[..., 8, 1:-1, 1:-1], x[..., 1:-1, 2:])


def test_adam_is_torchs():
    """For images that have made different numbers of steps."""
    target = torch.randn(2, 3, generator=generator(0))
    expected = []
    for row, steps in enumerate((3, 5)):
        p = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.Adam([p], lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            (p - target[row]).square().sum().backward()
            optimizer.step()
        expected.append(p.detach())
    p, m, i = torch.zeros(2, 3), moments(torch.zeros(2, 3)), torch.zeros(2, dtype=torch.long)
    for k in range(5):
        add, after = adam(m, -2 * (p - target), i, 0.1)
        live = torch.tensor([k < 3, True]).view(2, 1)
        p, i = torch.where(live, p + add, p), i + live.long().view(2)
        m = type(m)(*(torch.where(live, new, old) for new, old in zip(after, m, strict=True)))
    torch.testing.assert_close(p, torch.stack(expected), rtol=1e-5, atol=1e-6)


def built(name: str, **settings):
    """The attack, model, threat model of a small digits configuration."""
    config = composed(f"attack={name}", f"threat_model={name}", "purifier=diffpure", "purifier.steps=2")
    evaluation = build(config)
    attack = make({**config["attack"], "iterations": 4, "eot": 2, "confirm": 3, **settings})
    return attack, evaluation.arms["defended"].scored, evaluation.threat


@pytest.mark.parametrize("name", ["stadv", "low_frequency"])
def test_every_state_is_admitted_and_the_attack_hurts(name, images):
    """By the harness's own measure at every step. In the end the loss on fresh samples is above that of the clean
    images.
    """
    attack, model, threat = built(name, iterations=10)
    x, y, rng = images.x, images.y, Streams(range(6), 0, "attack")
    for kind in (attack, null_control(attack)):
        state = kind.start(model, x, y, threat, rng.draw(0))
        for i in range(kind.steps):
            x_adv, distance = threat.admit(state, x)
            assert torch.equal(x_adv, state.x_adv)  # pyright: ignore[reportAttributeAccessIssue]
            assert (distance <= threat.eps).all()
            assert x_adv.min() >= 0
            assert x_adv.max() <= 1
            state = kind.step(model, state, x, y, threat, rng.draw(1 + i))
        x_adv, distance = threat.admit(state, x)
        assert (distance > 0.1 * threat.eps).all()
        if kind is attack:
            losses = [model.loss(z, y, Streams(range(6), 0, "adv"), 8).mean() for z in (x_adv, x)]
            assert losses[0] > losses[1]


@pytest.mark.parametrize("name", ["stadv", "low_frequency"])
def test_a_defense_without_a_gradient_gets_no_clean_image_back(name, images):
    attack, _, threat = built(name)
    blank = Defended(none.purify, None, Classifier(Blank()))
    x, y, rng = images.x, images.y, Streams(range(6), 0, "attack")
    state = attack.start(blank, x, y, threat, rng.draw(0))
    for i in range(attack.steps):
        state = attack.step(blank, state, x, y, threat, rng.draw(1 + i))
    x_adv, distance = threat.admit(state, x)
    assert ((x_adv - x).abs().amax(dim=(1, 2, 3)) > 0.01).all()
    assert (distance > 0.5 * threat.eps).all()


class Blank(nn.Module):
    """Logits whose gradient is zero."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.arange(10.0))

    def forward(self, x):
        return self.bias + 0 * x.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("name", ["stadv", "low_frequency"])
def test_batch_mates_do_not_matter(name, images):
    """The same batch size, but other images in the batch."""
    attack, model, threat = built(name, iterations=2)
    results = []
    for order in ([0, 1, 2, 3], [2, 5, 0, 4]):
        x, y, rng = images.x[order], images.y[order], Streams(order, 0, "attack")
        state = attack.start(model, x, y, threat, rng.draw(0))
        for i in range(attack.steps):
            state = attack.step(model, state, x, y, threat, rng.draw(1 + i))
        results.append(dict(zip(order, state.x_adv, strict=True)))
    for k in (0, 2):
        torch.testing.assert_close(results[0][k], results[1][k], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("attack", "threat_model", "words"),
    [
        ("stadv", "linf", "need threat_model=stadv for attack=stadv, got threat_model=linf"),
        ("low_frequency", "l2", "need threat_model=low_frequency for attack=low_frequency, got threat_model=l2"),
        ("stadv", "low_frequency", "need threat_model=stadv for attack=stadv, got threat_model=low_frequency"),
        ("pgd_eot", "stadv", "need threat_model=linf or l2 for attack=pgd_eot, got threat_model=stadv"),
        (
            "autoattack",
            "low_frequency",
            "need threat_model=linf or l2 for attack=autoattack, got threat_model=low_freq",
        ),
    ],
)
def test_an_attack_under_a_threat_model_that_is_not_its_own(attack, threat_model, words):
    with pytest.raises(ValueError, match=words):
        build(composed(f"attack={attack}", f"threat_model={threat_model}"))


def test_no_attack_runs_under_every_threat_model_and_a_gradient_mode_under_its_attacks():
    for threat_model in ("stadv", "low_frequency"):
        evaluation = build(composed("attack=none", f"threat_model={threat_model}"))
        x = evaluation.subset.x[:2]
        assert torch.equal(evaluation.threat.admit(NoAttack().start(None, x, None, evaluation.threat, None), x)[0], x)  # pyright: ignore[reportArgumentType]
    assert Through(StAdv(1, 1), "bpda").norms == ("flow",)


BAD = [
    (StAdv, {"iterations": 0}),
    (StAdv, {"step_size": 0.0}),
    (StAdv, {"loss": "dlr"}),
    (low_frequency.LowFrequency, {"kernels": [[4, 3]]}),
    (low_frequency.LowFrequency, {"kernels": [[3]]}),
    (low_frequency.LowFrequency, {"sigma": 0.0}),
    (low_frequency.LowFrequency, {"eot": 0}),
]


@pytest.mark.parametrize(("kind", "bad"), BAD)
def test_bad_settings(kind, bad):
    with pytest.raises(ValueError, match="need "):
        kind(**{"iterations": 1, "eot": 1, **({} if kind is StAdv else {"kernels": [[3, 3]]}), **bad})


@pytest.mark.parametrize("name", ["stadv", "low_frequency"])
def test_a_row_says_what_it_is_and_finds_no_published_one(name):
    config = composed("dataset=cifar10", "purifier=diffpure", f"attack={name}", f"threat_model={name}")
    for eps in (config["threat_model"]["eps"], "8/255", 0.5):
        altered = {**config, "threat_model": {**config["threat_model"], "eps": eps}}
        assert published_rows(altered) == []
    figure = {"value": 10.0, "wilson95": [5.0, 15.0], "seed_std": None, "n": 32, "draws": 10}
    sides = {side: {"single": figure, "vote": figure} for side in ("standard", "robust")}
    summary = {"config": config, "per_seed": [0], "ties": 0, "audited": None, "caveats": NONE.as_data(), **sides}
    assert f"{config['threat_model']['norm']} 0.05" in str(row_table(summary).title)
    said = " ".join(report.warnings(summary))
    assert "no l_p ball" in said
    assert ("VGG16-LPIPS" in said) == (name == "low_frequency")
    ball = {**config, "threat_model": {"norm": "linf", "eps": "8/255"}}  # the same row in a ball
    assert "ball" not in " ".join(report.warnings({**summary, "config": ball}))


def test_the_papers_settings():
    flow = composed("dataset=cifar10", "attack=stadv", "threat_model=stadv")
    settings = [flow["attack"][k] for k in ("iterations", "eot", "step_size", "smooth")]
    assert [*settings, flow["threat_model"]["eps"]] == [100, 20, 0.01, 0.0025, 0.05]
    low = composed("dataset=cifar10", "attack=low_frequency", "threat_model=low_frequency")
    settings = [low["attack"][k] for k in ("iterations", "kernels", "sigma", "rate_filters", "rate_change")]
    assert settings == [100, [[5, 5], [7, 7], [5, 5], [3, 3]], 0.05, 0.05, 0.008]
    assert (low["attack"]["penalty"], low["attack"]["clip"], low["threat_model"]["eps"]) == (1e8, 1.0, 0.05)
    assert composed("dataset=imagenet", "attack=low_frequency")["attack"]["kernels"][2] == [17, 33]
