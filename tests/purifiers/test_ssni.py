"""SSNI: the score norm in closed form, the chain against DiffPure's at each image's own time, and the gradient."""

import functools
import math

import pytest
import torch

from dp.diffusion.denoisers import VP, Gaussian
from dp.purifiers import diffpure, ssni
from dp.rng import Streams
from dp.runs.build import build
from tests.helpers.compose import composed
from tests.helpers.parity import Script

GIVEN = {
    "t_min": 0.0, "t_max": 0.2, "reweight": "linear", "center": 30.0, "scale": 100.0, "score_t": 0.03, "score_steps": 3,
    "steps": 5, "eta": 1.0,
}  # fmt: skip
SCORE = {"score_t": 0.03, "score_steps": 3}


def image(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2


def streams(n: int = 2) -> Streams:
    return Streams(range(n), 0, "a")


def test_the_score_norm_in_closed_form():
    """For x0 ~ N(mean, std^2) the state of noise level abar has the score (sqrt(abar) mean - x_t) / its variance."""
    mean, std, x, total = 0.1, 0.4, image(), 0.0
    normals = [torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    for k, n in zip((10, 20, 30), normals, strict=True):
        abar = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)[k]
        state = abar.sqrt() * (2 * x - 1) + (1 - abar).sqrt() * n
        total = total + (abar.sqrt() * mean - state) / (abar * std**2 + 1 - abar)
    found = ssni.score_norm(x, Gaussian(mean, std), Script(normals), **SCORE)
    assert found.shape == (2,)
    for i in range(2):
        assert found[i].item() == pytest.approx(math.sqrt((total[i] / 3).square().sum()), rel=1e-9)


def test_the_weights_by_hand():
    norms = torch.tensor([10.0, 40.0, 50.0, 70.0, 200.0], dtype=torch.float64)
    wanted = torch.tensor([1 / (1 + math.exp(-(e - 50) / 20)) for e in norms.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ssni.weight(norms, "sigmoid", 50.0, 20.0), wanted)
    wanted = torch.tensor([0.0, 0.25, 0.5, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(ssni.weight(norms, "linear", 50.0, 40.0), wanted)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_each_image_goes_the_chain_of_its_own_time(eta):
    """Two images get the weights 1/4 and 3/4; DiffPure purifies each alone, from t = .05 and t = .15."""
    x, denoiser = image(), Gaussian(0.1, 0.4)
    low, high = sorted(ssni.score_norm(x, denoiser, streams(), **SCORE).tolist())
    denoiser.nfe = 0
    given = {**GIVEN, "center": (low + high) / 2, "scale": 2 * (high - low), "eta": eta, "clamp": "none"}
    out = ssni.purify(x, denoiser, None, streams(), **given)
    assert denoiser.nfe == 3 + 5
    norms = ssni.score_norm(x, denoiser, streams(), **SCORE)
    for i in range(2):
        rng = Streams([i], 0, "a")
        ssni.score_norm(x[i : i + 1], denoiser, rng, **SCORE)  # uses up the first three draws
        t = 0.05 if norms[i] == norms.min() else 0.15
        alone = diffpure.purify(
            x[i : i + 1], denoiser, None, rng, t=t, steps=5, eta=eta, index_shift=1, clamp="none"
        )  # fmt: skip
        torch.testing.assert_close(out[i : i + 1], alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [1, 3])
def test_with_one_time_for_all_it_is_diffpure_bit_for_bit(n):
    """In float32, with the shipped network. It rounds otherwise where each image has its own label, even the same."""
    denoiser = build(composed("purifier=ssni", "protocol.images=1")).arms["defended"].scored.denoiser
    x = torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = ssni.purify(x, denoiser, None, streams(n), **{**GIVEN, "t_min": 0.2})
        rng = streams(n)
        ssni.score_norm(x, denoiser, rng, **SCORE)
        plain = diffpure.purify(x, denoiser, None, rng, t=0.2, steps=5, eta=1.0, index_shift=1)
    assert torch.equal(out, plain) if n == 1 else torch.allclose(out, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("reweight", ["linear", "sigmoid"])
def test_an_image_further_from_the_data_gets_more_noise(reweight):
    """One image of the data's mean, moved away from it step by step, with the same noise for all."""
    x = 0.5 + 0.08 * torch.arange(5, dtype=torch.float64).view(5, 1, 1, 1).expand(5, 2, 4, 4)
    denoiser, seen = Gaussian(0.0, 0.2), []
    same = Streams([0] * 5, 0, "a")
    norms = ssni.score_norm(x, denoiser, same.draw(0), **SCORE)
    assert (norms.diff() > 0).all()
    given = {**GIVEN, "center": norms.mean().item(), "scale": 2 * (norms.max() - norms.min()).item()}
    given |= {"reweight": reweight, "on_step": lambda i, sigma, z, x0: seen.append((sigma, z))}
    ssni.purify(x, denoiser, None, same.draw(0), **given)
    spread = (seen[0][1] - (2 * x - 1)).flatten(1).std(dim=1)
    assert (spread.diff() > 0.01).all()
    assert [sigma for sigma, _ in seen] == pytest.approx([denoiser.sigma(k / 1000) for k in (199, 159, 119, 79, 39)])


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("reweight", ["linear", "sigmoid"])
def test_the_gradient_goes_through_the_score_norm(eta, reweight):
    x, denoiser = image(1), Gaussian(0.1, 0.4)
    norm = ssni.score_norm(x, denoiser, streams(1), **SCORE).item()
    center = 0.9123 * norm  # so that no time is a whole index, where the clock has a kink
    given = {**GIVEN, "center": center, "scale": 2 * norm, "eta": eta, "reweight": reweight, "clamp": "none"}
    run = functools.partial(ssni.purify, denoiser=denoiser, classifier=None, **given)
    assert torch.autograd.gradcheck(lambda x: run(x, rng=streams(1)), x.clone().requires_grad_(), fast_mode=True)
    slopes, values = [], []
    for derivative in ("exact", "constant_time"):
        leaf = x.clone().requires_grad_()
        out = run(leaf, rng=streams(1), derivative=derivative)
        values.append(out.detach())
        slopes.append(torch.autograd.grad(out.sum(), leaf)[0])
    assert torch.equal(*values)
    assert (slopes[0] - slopes[1]).abs().max() > 1e-3


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_without_noise_to_speak_of_the_image_stays_and_the_gradient_is_finite(eta):
    """All steps are then at the first index, where the noise level does not change."""
    leaf = image().requires_grad_()
    out = ssni.purify(leaf, Gaussian(), None, streams(), **{**GIVEN, "center": 1e6, "eta": eta})
    assert (out - leaf).abs().max() < 0.05
    (slope,) = torch.autograd.grad(out.sum(), leaf)
    assert slope.isfinite().all()
    assert (slope - 1).abs().max() < 0.05


def test_the_clock_is_the_denoisers():
    """At whole indices; a clock in continuous time, which has no noise at 0, begins at index 1."""
    for denoiser, first in ((Gaussian(), 0), (VP(torch.nn.Identity()), 1)):
        clock = ssni._clock(denoiser, 0.1, torch.device("cpu"))
        times = torch.tensor([0.0, 0.001, 0.002, 0.051, 0.1], dtype=torch.float64)
        wanted = [denoiser.sigma(max(k, first) / 1000) for k in (0, 0, 1, 50, 99)]
        assert clock(times).tolist() == pytest.approx(wanted, rel=1e-9)
        between = clock(torch.tensor([0.0515], dtype=torch.float64)).item()
        assert between == pytest.approx(denoiser.sigma(0.0505), rel=1e-3)


def test_the_yaml_has_no_score_norms_for_denoisers_that_were_not_measured():
    given = composed("purifier=ssni", "dataset=cifar10")["purifier"]
    assert (given["t_max"], given["steps"], given["score_t"], given["score_steps"]) == (0.104, 105, 0.02, 20)
    assert given["center"] is given["scale"] is None
    with pytest.raises(ValueError, match=r"^need center and scale > 0 .* measure"):
        ssni.purify(image(), Gaussian(), None, streams(), **{**GIVEN, "center": None})


@pytest.mark.parametrize(
    "wrong",
    [
        {"t_min": 0.3}, {"t_max": 1.1}, {"t_max": 0.0}, {"reweight": "step"}, {"scale": 0.0}, {"score_t": 0.0},
        {"score_steps": 0}, {"steps": 0}, {"eta": 2.0}, {"derivative": "bpda"},
    ],
)  # fmt: skip
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match=r"^need "):
        ssni.purify(image(), Gaussian(), None, streams(), **{**GIVEN, **wrong})
