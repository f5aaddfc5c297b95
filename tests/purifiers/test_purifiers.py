"""The contract of every purifier, found by its yaml, and the methods' own algebra."""

import functools
from itertools import pairwise

import pytest
import torch

from dp.contracts import purifier as contract
from dp.contracts.declared import honest_gradient
from dp.defense.defended import Defended
from dp.diffusion.denoisers import Gaussian
from dp.purifiers import diffpure, hetero, hetero_official
from dp.rng import Streams
from dp.runs.build import build
from tests.helpers.compose import composed, home, options
from tests.helpers.contract import assert_held, in_one_line, skip_without_weights


@pytest.mark.parametrize("name", options("purifier"))
def test_contract(name, images, record_property):
    """Shape, range, determinism, batch independence, a gradient; see dp/contracts/purifier.py."""
    config = composed(f"purifier={name}", *home(name), "protocol.images=6")
    skip_without_weights(config)
    with in_one_line(f"purifier {name}"):
        evaluation = build(config)
    model, images = evaluation.arms["defended"].scored, evaluation.subset if home(name) else images
    found = contract.failures(model, images, honest_gradient(config["purifier"]))
    assert_held(found, "purifier", config, record_property)


class Taps(torch.nn.Module):
    """A classifier whose activations are the image itself."""

    def features(self, x):
        return [x]


class Script:
    """Noise that is given: the i-th call returns the i-th tensor."""

    def __init__(self, *noises):
        self.noises = list(noises)

    def randn_like(self, z):
        return self.noises.pop(0)


class Counting(Gaussian):
    """Records the noise levels at which it is called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.levels = []

    def denoise(self, z, sigma):
        self.levels.append(float(sigma))
        return super().denoise(z, sigma)


def half_bright() -> torch.Tensor:
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[..., :2] = 1.0
    return x


HETERO = {"t_l": 0.2, "t_s": 0.1, "tau": 0.5, "jump": 10, "steps": 5}


@pytest.mark.parametrize(
    ("extra", "nfe"),
    [
        ({}, 7),
        ({"resample_stage2": True}, 10),
        ({"t_s": 0.2}, 5),
        ({"steps": 10}, 15),
        ({"resampling": "multi"}, 23),
        ({"resampling": "multi", "jump": 1}, 5),
        ({"resampling": "multi", "t_s": 0.2}, 5),
    ],
)
def test_hetero_nfe(extra, nfe):
    """steps + stage-1 steps (two of five, from .2 to .15 to .1), 2 steps with resample_stage2; U = 10 times the stage-1
    steps and the three others with multi-step resampling.
    """
    model = Defended(functools.partial(hetero.purify, **{**HETERO, **extra}), Counting(), Taps())  # pyright: ignore[reportArgumentType]
    model.purify(half_bright(), Streams([0], 0, "adv"))
    assert model.nfe == nfe


@pytest.mark.parametrize(
    ("t_l", "t_s", "n", "nfe"), [(0.2, 0.1, 10, 2), (0.2, 0.1, 500, 100), (0.4, 0.2, 10, 4), (0.4, 0.2, 500, 200)]
)
def test_official_grids(t_l, t_s, n, nfe):
    """2 NFE in the CIFAR attack and 100 in the defense, 4 and 200 on ImageNet."""
    assert hetero_official.index_grid(10, 0.2) == [200, 100, 0]
    assert hetero_official.index_grid(10, 0.4) == [400, 300, 200, 100, 0]
    given = {"t_l": t_l, "t_s": t_s, "jump": 3, "n": n, "tau": 0.5, "top": None, "mask_input_bug": False}
    model = Defended(functools.partial(hetero_official.purify, **given), Counting(), Taps())  # pyright: ignore[reportArgumentType]
    model.purify(half_bright(), Streams([0], 0, "adv"))
    assert model.nfe == nfe


def test_hetero_two_steps_by_hand():
    """Algorithm 1 in variance-preserving coordinates, written out for two steps with known noise."""
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)
    noises = [
        torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(5)
    ]
    x, mask = half_bright(), half_bright()
    mean, std = 0.1, 0.6

    def x0_of(state, k):  # E[x0 | x_k] for x0 ~ N(mean, std^2)
        a = abar[k]
        return mean + a.sqrt() * std**2 / (a * std**2 + 1 - a) * (state - a.sqrt() * mean)

    def eps_of(state, k):
        return (state - abar[k].sqrt() * x0_of(state, k)) / (1 - abar[k]).sqrt()

    def posterior(state, k, j, n):  # Ho et al. 2020, Eq. 7, between grid points
        a, ratio = abar[j], abar[k] / abar[j]
        mu = a.sqrt() * (1 - ratio) / (1 - abar[k]) * x0_of(state, k) + ratio.sqrt() * (1 - a) / (1 - abar[k]) * state
        return mu + ((1 - a) / (1 - abar[k]) * (1 - ratio)).sqrt() * n

    u = 2 * x - 1
    state = abar[200].sqrt() * u + (1 - abar[200]).sqrt() * noises[0]
    unknown = posterior(state, 200, 150, noises[1])
    known = abar[150].sqrt() * u + (1 - abar[150]).sqrt() * noises[2]
    state = mask * unknown + (1 - mask) * known  # Eq. 5 orientation: generated where the mask is
    ratio = abar[160] / abar[150]
    state = ratio.sqrt() * state + (1 - ratio).sqrt() * noises[3]  # U = 10 forward
    state = abar[150].sqrt() * x0_of(state, 160) + (1 - abar[150]).sqrt() * eps_of(state, 160)  # one DDIM step back
    expected = ((x0_of(state, 150) + 1) / 2).clamp(0, 1)  # the last step, at t < t_s, goes to x0
    got = hetero.purify(
        x,
        Gaussian(mean, std),
        Taps(),
        Script(*noises),
        t_l=0.2,
        t_s=0.15,
        tau=0.5,
        jump=10,
        steps=2,
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_a_given_mask_is_used_like_the_classifiers_own():
    """The classifier's mask, given as a region, leads to the same image; its complement to another."""
    x, mask = half_bright(), half_bright()
    assert torch.equal(hetero.strong_pixels(x, Gaussian(), Taps(), tau=0.5), mask)

    def purified(**more):
        return hetero.purify(x, Gaussian(), Taps(), Streams([0], 0, "adv"), **HETERO, **more)

    assert torch.equal(purified(region=lambda image: mask), purified())
    assert not torch.equal(purified(region=lambda image: 1 - mask), purified())
    assert torch.equal(purified(region=lambda image: 1 - mask, eq8_literal=True), purified())


def test_a_given_mask_excludes_the_other_controls():
    for more, words in (({"random_mask": True}, "random_mask or region"), ({"mask_grad": "soft"}, "random or given")):
        given = {**HETERO, **more, "region": torch.ones_like}
        with pytest.raises(ValueError, match=words):
            hetero.purify(half_bright(), Gaussian(), Taps(), Streams([0], 0, "adv"), **given)


def test_without_a_jump_nothing_is_resampled():
    """NFE = steps, and Algorithm 1 without its inner loop, by hand for Gaussian data in coordinates of sigma."""
    model = Defended(functools.partial(hetero.purify, **{**HETERO, "jump": 0}), Counting(), Taps())
    model.purify(half_bright(), Streams([0], 0, "adv"))
    assert model.nfe == HETERO["steps"]
    x, gaussian, rng = half_bright(), Gaussian(0.1, 0.6), Streams([0], 0, "adv")
    given = {"t_l": 0.2, "t_s": 0.15, "tau": 0.5, "jump": 0, "steps": 2}
    got = hetero.purify(x, gaussian, Taps(), Streams([0], 0, "adv"), **given)
    n = [rng.randn_like(x) for _ in range(3)]
    high, low = float(gaussian.sigma(0.2)), float(gaussian.sigma(0.15))

    def x0_of(z, sigma):
        return 0.1 + 0.36 / (0.36 + sigma**2) * (z - 0.1)

    known = 2 * x - 1
    z = known + high * n[0]
    spread = low * (1 - low**2 / high**2) ** 0.5
    unknown = x0_of(z, high) + (low / high) ** 2 * (z - x0_of(z, high)) + spread * n[1]  # Eq. 7
    z = x * unknown + (1 - x) * (known + low * n[2])
    torch.testing.assert_close(got, ((x0_of(z, low) + 1) / 2).clamp(0, 1), rtol=0, atol=1e-9)


def test_the_number_of_strong_steps_may_be_given():
    assert hetero.two_stage_grid(0.4, 0.1, 4) == pytest.approx([0.4, 0.3, 0.2, 0.1, 0])
    assert hetero.two_stage_grid(0.4, 0.1, 4, 2) == pytest.approx([0.4, 0.25, 0.1, 0.05, 0])
    for strong in (0, 4):
        with pytest.raises(ValueError, match="need 0 < strong_steps < steps"):
            hetero.two_stage_grid(0.4, 0.1, 4, strong)


def test_multi_step_resampling_by_hand():
    """RePaint's Algorithm 1 in variance-preserving coordinates: stage 1's step three times, and up between them."""
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)
    noises = [
        torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(10)
    ]
    x, mask, mean, std = half_bright(), half_bright(), 0.1, 0.6
    u, ratio, left = 2 * x - 1, abar[200] / abar[150], list(noises)

    def x0_of(state, k):  # E[x0 | x_k] for x0 ~ N(mean, std^2)
        a = abar[k]
        return mean + a.sqrt() * std**2 / (a * std**2 + 1 - a) * (state - a.sqrt() * mean)

    state = abar[200].sqrt() * u + (1 - abar[200]).sqrt() * left.pop(0)
    for again in range(3):
        if again:  # q(x_200 | x_150)
            state = ratio.sqrt() * state + (1 - ratio).sqrt() * left.pop(0)
        mu = abar[150].sqrt() * (1 - ratio) / (1 - abar[200]) * x0_of(state, 200)
        mu = mu + ratio.sqrt() * (1 - abar[150]) / (1 - abar[200]) * state
        unknown = mu + ((1 - abar[150]) / (1 - abar[200]) * (1 - ratio)).sqrt() * left.pop(0)
        known = abar[150].sqrt() * u + (1 - abar[150]).sqrt() * left.pop(0)
        state = mask * unknown + (1 - mask) * known
    expected = ((x0_of(state, 150) + 1) / 2).clamp(0, 1)
    given = {"t_l": 0.2, "t_s": 0.15, "tau": 0.5, "steps": 2, "jump": 3, "resampling": "multi"}
    got = hetero.purify(x, Gaussian(mean, std), Taps(), Script(*noises), **given)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert len(left) == 1  # the last step, to x0, draws noise that it does not use


@pytest.mark.parametrize("wrong", [{"jump": 0}, {"resample_stage2": True}, {"resampling": "both"}])
def test_multi_step_resampling_refuses(wrong):
    with pytest.raises(ValueError, match=r"need (jump >= 1 and resample_stage2=false|resampling among single, multi)"):
        hetero.purify(
            half_bright(), Gaussian(), Taps(), Streams([0], 0, "a"), **{**HETERO, "resampling": "multi", **wrong}
        )


def test_the_weak_time_is_on_the_grid():
    """Equal steps on both sides of t_s, in proportion, at least one each."""
    for t_l, t_s, steps, strong in ((0.2, 0.1, 5, 2), (0.2, 0.05, 100, 75), (0.2, 0.19, 4, 1), (0.2, 0.01, 2, 1)):
        times = hetero.two_stage_grid(t_l, t_s, steps)
        assert (times[0], times[strong], times[-1], len(times)) == (t_l, t_s, 0.0, steps + 1)
        for stretch in (times[: strong + 1], times[strong:]):
            lengths = [a - b for a, b in pairwise(stretch)]
            assert lengths == pytest.approx([lengths[0]] * len(lengths))
    assert hetero.two_stage_grid(0.2, 0.2, 4) == pytest.approx([0.2, 0.15, 0.1, 0.05, 0.0])
    with pytest.raises(ValueError, match="need steps >= 2 with t_s < t_l"):
        hetero.two_stage_grid(0.2, 0.1, 1)


def test_every_weak_time_gives_another_image_and_the_surrogate_has_the_same():
    """On the old grid any t_s between two of its times gave the same bits."""
    x, outs = half_bright(), []
    for t_s in (0.155, 0.16, 0.17, 0.18, 0.19, 0.199):
        levels = {}
        for steps in (5, 3):  # the defense and its surrogate
            denoiser = Counting()
            given = {**HETERO, "t_s": t_s, "steps": steps, "tau": 0.99}
            out = hetero.purify(x, denoiser, Taps(), Streams([0], 0, "a"), **given)
            levels[steps] = denoiser.levels
            outs += [out] if steps == 5 else []
        assert denoiser.sigma(t_s) in levels[5]
        assert denoiser.sigma(t_s) in levels[3]
    assert all(not torch.equal(a, b) for k, a in enumerate(outs) for b in outs[:k])


def test_what_the_methods_tell_of_themselves():
    """The mask is the bright half; the released grid rounds t_s up by a step and the jump: 110 + 3 in place of 100."""
    x, denoiser = half_bright(), Gaussian()
    told = hetero.facts(x, denoiser, Taps(), **{**HETERO, "tau": 0.9})
    assert told == {
        "strong noise on % of the pixels": 50.0,
        "t_l": 0.2,
        "sigma at t_l": denoiser.sigma(0.2),
        "t_s": 0.1,
        "sigma at t_s": denoiser.sigma(0.1),
    }
    given = {"t_l": 0.2, "t_s": 0.1, "jump": 3, "n": 100, "tau": 0.5, "top": None, "mask_input_bug": False}
    told = hetero_official.facts(x, denoiser, Taps(), **given)
    assert (told["t_l"], told["t_s"], told["strong noise on % of the pixels"]) == (0.2, 0.113, 50.0)
    assert hetero_official.facts(x, denoiser, Taps(), **{**given, "n": 10, "t_s": 0.15})["t_s"] == 0  # never inserted


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_one_time_is_uniform_purification(steps):
    """With t_s = t_l there is no stage 1, and what is left is DDPM from t_l on the same noise."""
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = hetero.purify(
        x, Gaussian(0.1, 0.6), Taps(), Streams([3, 4], 0, "a"), **{**HETERO, "t_s": 0.2, "steps": steps}
    )
    uniform = diffpure.purify(x, Gaussian(0.1, 0.6), Taps(), Streams([3, 4], 0, "a"), t=0.2, steps=steps, eta=1.0)
    assert torch.equal(ours, uniform)


def test_the_index_of_a_time():
    """DiffPure's code noises to index 1000 t - 1 of the schedule: sigma .719 at t = .2, not .724."""
    sigmas = {}
    for shift in (0, 1):
        denoiser = Counting()
        given = {"t": 0.2, "steps": 4, "eta": 0.0, "index_shift": shift}
        diffpure.purify(half_bright(), denoiser, Taps(), Streams([0], 0, "a"), **given)
        sigmas[shift] = denoiser.levels
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)
    for shift, indices in ((0, (200, 150, 100, 50)), (1, (199, 149, 99, 49))):
        assert sigmas[shift] == pytest.approx([float((1 / abar[k] - 1).sqrt()) for k in indices], rel=1e-9)
    given = {"t": 0.2, "steps": 4, "eta": 0.0, "index_shift": 51}
    with pytest.raises(ValueError, match="need 0 <= index_shift"):
        diffpure.purify(half_bright(), Gaussian(), Taps(), Streams([0], 0, "a"), **given)


def watched(purify, *args, **given) -> list[torch.Tensor]:
    """The states that `on_step` sees."""
    states: list[torch.Tensor] = []
    purify(*args, **given, on_step=lambda i, sigma, z, x0: states.append(z))
    return states


def test_hetero_orientation_and_mask():
    """With eq8_literal the generated region is the other one; an empty or full mask leaves nothing to choose."""
    x = half_bright()
    changed = {}
    for literal in (False, True):
        # No noise at all: the known region keeps the input, the generated one is pulled to the mean.
        silence = Script(*[torch.zeros_like(x)] * 40)
        given = {**HETERO, "t_s": 0.01, "steps": 2, "jump": 0, "eq8_literal": literal}
        states = watched(hetero.purify, x, Gaussian(0.0, 0.5), Taps(), silence, **given)
        changed[literal] = (states[1] - (2 * x - 1)).abs() > 1e-9
    mask = x > 0.5
    assert torch.equal(changed[False], mask)
    assert torch.equal(changed[True], ~mask)


def test_official_by_hand():
    """The released loop, in variance-preserving coordinates: merge at k, U up, straight to the next index."""
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)
    noises = [
        torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3)
    ]
    x, mask, mean, std = half_bright(), half_bright(), 0.1, 0.6

    def ddim(state, k, j):
        a = abar[k]
        x0 = mean + a.sqrt() * std**2 / (a * std**2 + 1 - a) * (state - a.sqrt() * mean)
        return abar[j].sqrt() * x0 + (1 - abar[j]).sqrt() * (state - a.sqrt() * x0) / (1 - a).sqrt()

    u = 2 * x - 1
    state = abar[200].sqrt() * u + (1 - abar[200]).sqrt() * noises[0]
    state = mask * state + (1 - mask) * (abar[200].sqrt() * u + (1 - abar[200]).sqrt() * noises[1])
    ratio = abar[203] / abar[200]
    state = ratio.sqrt() * state + (1 - ratio).sqrt() * noises[2]
    state = ddim(ddim(state, 203, 100), 100, 0)
    expected = ((state + 1) / 2).clamp(0, 1)  # the state at index 0, not x0
    got = hetero_official.purify(
        x,
        Gaussian(mean, std),
        Taps(),
        Script(*noises),
        t_l=0.2,
        t_s=0.1,
        jump=3,
        n=10,
        tau=0.5,
        top=None,
        mask_input_bug=False,
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_official_mask_input_bug_feeds_normalized_pm1():
    """Deviation 8 (input range of the mask): the classifier gets (2x - 1 - mean) / std with ImageNet's constants.

    With the switch off it gets the image itself.
    """
    seen = []

    class Watch(Taps):
        def features(self, x):
            seen.append(x)
            return [x]

    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    given = {"t_l": 0.2, "t_s": 0.1, "jump": 3, "n": 10, "tau": 0.5, "top": None}
    for bug in (True, False):
        hetero_official.purify(x, Gaussian(), Watch(), Streams([0], 0, "a"), **given, mask_input_bug=bug)
    from torchvision.transforms.functional import normalize

    torch.testing.assert_close(seen[0], normalize(2 * x - 1, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert torch.equal(seen[1], x)


def test_official_attack_grid_never_sees_the_mask():
    """Deviation 31 (the attack does not depend on the mask): with n = 10, t_l = .2, t_s = .1 and equal noise.

    With n = 20 it depends on the mask.
    """
    x = half_bright()
    n = [torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    for steps, blind in ((10, True), (20, False)):
        out = []
        for tau, top in ((None, 0.0), (None, 1.0), (0.5, None)):  # empty, full, half
            noise = Script(n[0], n[0], n[1], n[0], n[1])
            given = {"t_l": 0.2, "t_s": 0.1, "jump": 3, "n": steps, "tau": tau, "top": top, "mask_input_bug": False}
            out.append(hetero_official.purify(x, Gaussian(), Taps(), noise, **given))
        same = torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])
        assert same is blind


@pytest.mark.parametrize(("n", "blind"), [(10, True), (20, False)])
def test_official_attack_gradient_never_sees_the_mask(n, blind, images, monkeypatch):
    """Deviation 31 (the attack does not depend on the mask), in the attacked loss.

    With equal noise, loss and gradient of the surrogate are the same bits for any mask, though the scored defense
    changes with it. From n = 20 on the gradient depends on the mask too.
    """
    given = ["purifier=hetero_official", "threat_model.grad=surrogate", f"purifier.gradients.surrogate.n={n}"]
    attacked, scored, _ = build(composed(*given)).arms["defended"]
    fresh = Streams.randn_like

    def tied(self, z):
        self.calls = [0] * len(self)
        return fresh(self, z)

    monkeypatch.setattr(Streams, "randn_like", tied)
    some = torch.rand(1, 1, *images.x.shape[2:], generator=torch.Generator().manual_seed(0)).round()
    climbed, outputs = [], []
    for mask in (torch.zeros_like(some), torch.ones_like(some), some):
        monkeypatch.setattr(hetero_official, "threshold_mask", lambda *_, mask=mask, **__: mask)
        rng = Streams(images.ids, 0, "attack")
        climbed.append(attacked.loss_gradient(images.x, images.y, rng, 3))
        outputs.append(scored.purify(images.x, rng).detach())
    for k in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(climbed[0], climbed[k], strict=True)) is blind
        assert not torch.equal(outputs[0], outputs[k])


def test_diffpure_explicit_grid_and_steps():
    seen = []
    denoiser = Counting()
    given = {"t": 0.2, "eta": 1.0, "on_step": lambda i, sigma, z, x0: seen.append((i, sigma))}
    diffpure.purify(half_bright(), denoiser, None, Streams([0], 0, "a"), steps=[0.2, 0.15, 0.03], **given)
    assert denoiser.levels == [s for _, s in seen] == [denoiser.sigma(t) for t in (0.2, 0.15, 0.03)]
    with pytest.raises(ValueError, match="falling times"):
        diffpure.purify(half_bright(), denoiser, None, Streams([0], 0, "a"), steps=[0.2, 0.3], **given)


@pytest.mark.parametrize(
    "bad",
    [
        {"t_s": 0.3},
        {"t_s": 0.0},
        {"t_l": 1.2},
        {"tau": 1.5},
        {"jump": -1},
        {"steps": 0},
        {"phi": "max"},
        {"clamp": "soft"},
    ],
)
def test_hetero_rejects(bad):
    with pytest.raises(ValueError, match=r"^need "):
        hetero.purify(half_bright(), Gaussian(), Taps(), Streams([0], 0, "a"), **{**HETERO, **bad})


@pytest.mark.parametrize("bad", [{"n": 0}, {"t_s": 0.3}, {"tau": None}, {"top": 0.5}, {"n": 3}])
def test_official_rejects(bad):
    given = {"t_l": 0.2, "t_s": 0.1, "jump": 3, "n": 10, "tau": 0.5, "top": None, "mask_input_bug": False}
    with pytest.raises(ValueError, match=r"^need "):
        hetero_official.purify(half_bright(), Gaussian(), Taps(), Streams([0], 0, "a"), **{**given, **bad})
