"""The measured bytes of a network call against what a whole chain stores, and the memory mode that follows."""

import functools

import pytest
import torch

from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.defense.memory import PROBED, activation_bytes, bytes_per_call
from dp.diffusion.sampling import to_01, to_pm1
from dp.purifiers import none
from dp.rng import Streams
from dp.runs import build as building
from dp.runs.build import build
from tests.diffusion import test_guided as toy
from tests.diffusion.test_checkpointing import ConvNet, Net, NormNet, image
from tests.diffusion.test_checkpointing import build as denoiser_of
from tests.helpers.compose import composed


def plain(x, denoiser, classifier, rng, *, on_step=None, steps=4):
    z = to_pm1(x)
    for _ in range(steps):
        z = 0.5 * (denoiser(z, 0.5) + z)
    return to_01(z, "none")


def model_of(purify, steps, net: type[ConvNet] = NormNet):
    return Defended(functools.partial(purify, steps=steps), denoiser_of(net, "store", 1), Classifier(Net()))


def stored_by(purify, steps):
    return activation_bytes(model_of(purify, steps), image(lanes=1), Streams([0], 0, "probe"))


@pytest.mark.parametrize("purify", [plain, toy.guided, functools.partial(toy.guided, calls=2)])
def test_bytes_of_a_call_are_the_slope_of_what_a_chain_stores(purify):
    """A step of two calls, and one that is differentiated inside, are measured as they are: guidance costs double."""
    calls = 2 if isinstance(purify, functools.partial) else 1
    found = bytes_per_call(model_of(purify, 12), image(lanes=1), Streams([0], 0, "probe"))
    slope = (stored_by(purify, 12) - stored_by(purify, 4)) / 8 / calls
    assert found.call == pytest.approx(slope, rel=0.1)
    assert found.classifier == activation_bytes(
        Defended(none.purify, None, Classifier(Net())), image(lanes=1), Streams([0], 0, "probe")
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("purifier", ["diffpure", "gdmp"])
def test_the_bytes_are_those_that_the_allocator_does_not_get_back(purifier, dtype):
    """Torch's profiler counts what the whole forward pass allocates and keeps, and knows nothing of autograd."""
    config = composed(f"purifier={purifier}", "purifier.steps=3", "protocol.images=1", "workers=1", f"dtype={dtype}")
    evaluation = build(config)
    model, x = evaluation.arms["defended"].attacked.gradient_mode("full"), evaluation.subset.x
    counted = activation_bytes(model, x, Streams([0], 0, "probe"))
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        out = model(x.clone().requires_grad_(), Streams([0], 0, "probe"))
    assert out.requires_grad
    held = sum(event.self_cpu_memory_usage for event in profiled.key_averages())
    assert counted == pytest.approx(held, rel=0.1)


def test_guidance_is_not_taken_for_a_plain_call():
    probe = Streams([0], 0, "probe")
    plain_call, guided_call = (
        bytes_per_call(model_of(purify, 12), image(lanes=1), probe).call for purify in (plain, toy.guided)
    )
    assert guided_call > 1.8 * plain_call


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_short_chain_is_measured_whole_without_its_classifier(steps):
    found = bytes_per_call(model_of(plain, steps), image(lanes=1), Streams([0], 0, "probe"))
    slope = (stored_by(plain, 12) - stored_by(plain, 4)) / 8
    assert found.call == pytest.approx(slope, rel=0.25)  # the input's own conversion weighs more here


def test_a_long_chain_is_not_run_to_its_end():
    for room, calls in ((float("inf"), PROBED), (1.0, 1)):
        model = model_of(plain, 500, ConvNet)
        each = bytes_per_call(model, image(lanes=1), Streams([0], 0, "probe"), room).call
        assert model.denoiser is not None
        assert model.denoiser.nfe == calls + 1  # the measurement ends where one more call begins
        assert each == pytest.approx((stored_by_conv(12) - stored_by_conv(4)) / 8, rel=0.25)


def stored_by_conv(steps):
    return activation_bytes(model_of(plain, steps, ConvNet), image(lanes=1), Streams([0], 0, "probe"))


def test_a_purifier_with_networks_of_its_own_and_one_without_any():
    own = toy.Energy()
    found = bytes_per_call(Defended(own, None, Classifier(Net())), image(1, torch.float32), Streams([0], 0, "probe"))
    whole = activation_bytes(Defended(own, None, Classifier(Net())), image(1, torch.float32), Streams([0], 0, "probe"))
    assert found.call == pytest.approx((whole - found.classifier) / 3)
    bare = bytes_per_call(Defended(none.purify, None, Classifier(Net())), image(1), Streams([0], 0, "probe"))
    assert bare.call == 0


@pytest.mark.parametrize("purifier", ["diffpure", "hetero"])
def test_what_auto_keeps_fits_into_half_of_the_free_memory(purifier, monkeypatch):
    """The bytes of one image and sample, times the width of a call: at most half, and more than a quarter of it."""
    config = composed(f"purifier={purifier}", "purifier.steps=12", "protocol.images=1", "workers=1")
    width = config["dataset"]["lanes"] * config["dataset"]["draws_per_call"]

    def scored(free):
        monkeypatch.setattr(building, "free_bytes", lambda device: free)
        evaluation = build(config)
        model, subset = evaluation.arms["defended"].scored, evaluation.subset
        assert model.denoiser is not None
        return model.denoiser, activation_bytes(model, subset.x, Streams(subset.ids, 0, "whole"))

    denoiser, all_of_it = scored(1e15)
    assert denoiser.memory == "store"
    free = 2 * width * 0.5 * all_of_it  # half of the chain fits
    denoiser, kept = scored(free)
    assert denoiser.memory == "recompute"
    assert 0.5 * free / 2 < width * kept < 0.5 * free * 1.05
    assert scored(2.5 * width * all_of_it)[0].memory == "store"
    denoiser, _ = scored(1.0)
    assert (denoiser.memory, denoiser.recompute.keep) == ("recompute", 1)
