"""The cost of a run before the run: FLOPs against closed forms, times against a clock that counts, nothing attacked."""

import io
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dp.evaluation.estimate import estimate
from dp.evaluation.work import BACKWARD
from dp.runs import cost, flops, pipeline, skeleton, timing
from dp.runs.build import build
from dp.runs.compose import CONF, nodes
from dp.runs.engines.local import Local
from dp.runs.engines.on_ray import Ray
from dp.runs.gpus import GPUS, SHARE, check_cost
from tests.helpers.compose import TINY, composed, setup

RATIO = 0.5  # of the clock: a call of the classifier to one of the denoiser


def test_a_convolution_by_hand():
    net, x = nn.Conv2d(3, 8, 3, padding=1).requires_grad_(False).to("meta"), torch.zeros(1, 3, 10, 12, device="meta")
    size = flops._size(net, net, x)
    once = 2 * 10 * 12 * 8 * 3 * 9  # a multiplication and an addition for every weight and pixel
    assert size.forward == once
    assert size.gradient == 2 * once


def test_on_the_meta_device_the_same_is_counted_as_in_a_real_call():
    config = composed(*TINY, "workers=1")
    bare = skeleton.without_files(config)
    scored = build(config).arms["defended"].scored
    network = skeleton.denoiser_on_meta(bare)
    assert network is not None
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    x = torch.rand(1, 1, 16, 16)
    with FlopCounterMode(display=False) as real, torch.no_grad():
        scored.denoiser(x, 1.0)
    found = flops._size(lambda z: network(z, 1.0), network, x.to("meta"))
    assert found.forward == real.get_total_flops() > 0
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t), FlopCounterMode(display=False) as both:
        scored.denoiser(x.requires_grad_(), 1.0).sum().backward()
    assert found.gradient == both.get_total_flops()


def loaders(node):
    return [each for each in nodes(node) if each.get("_target_") in {skeleton.LOAD, *skeleton.UNTRAINED}]


@pytest.mark.parametrize("group", ["classifier", "denoiser"])
def test_no_network_needs_a_file(group):
    files = [yaml.safe_load(path.read_text()) for path in sorted((CONF / group).rglob("*.yaml"))]
    assert any(loaders(node) for node in files)
    assert not any(loaders(skeleton._without_files(node)) for node in files)


def test_no_network_of_a_purifier_needs_a_file():
    config = composed("purifier=adp")
    assert loaders(config["purifier"])
    assert not loaders(skeleton.without_files(config)["purifier"])


def counting(evaluation, monkeypatch):
    """A clock: an image in a call of the denoiser takes a second, one in a call of the classifier `RATIO`."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing.Clock, "now", lambda self: clock.now)

    def counts(price):
        def hook(module, inputs, output):
            clock.now += len(inputs[0]) * price * (1 + BACKWARD if output.requires_grad else 1)

        return hook

    scored = evaluation.arms["defended"].scored
    scored.classifier.register_forward_hook(counts(RATIO))
    scored.denoiser.register_forward_hook(counts(1.0))
    return clock


@pytest.mark.parametrize("patience", [1e9, 0.0], ids=["whole", "by calls"])
@pytest.mark.parametrize("overrides", [[], ["attack=apgd_ce"], ["attack=bpda_eot", "purifier=diffpure"]], ids=str)
def test_the_estimate_is_the_time_that_the_run_then_takes(overrides, patience, monkeypatch):
    monkeypatch.setattr(timing, "PATIENCE", patience)
    known = composed(*overrides)["attack"]
    small = [word for word in TINY if not word.startswith("attack.") or word[7:].partition("=")[0] in known]
    config = composed(*small, "workers=1", "memory=store", *overrides)
    evaluation = build(config)
    clock = counting(evaluation, monkeypatch)
    found, here = timing.here_of(config, evaluation, 1)
    assert found.whole == (patience > 0)
    begin = clock.now
    for unit in evaluation.plan():
        evaluation.run(unit)
    assert here.seconds == pytest.approx(clock.now - begin, rel=0.15)


def test_only_a_long_run_says_how_long(monkeypatch):
    config = composed(*TINY, "workers=1")
    evaluation = build(config)
    clock = counting(evaluation, monkeypatch)
    monkeypatch.setattr(timing, "LONG", 10.0)
    (line,) = timing.long_line(config, evaluation, 1000.0, 1)
    assert line.startswith("estimate: this run takes about")
    before = clock.now
    assert not [*timing.long_line(config, evaluation, 5.0, 1)]
    assert clock.now - before <= 8  # single calls of one image: nothing else was measured


def test_twice_the_workers_of_the_engine_take_half_the_time(monkeypatch):
    config = composed(*TINY, "workers=1")
    evaluation = build(config)
    counting(evaluation, monkeypatch)
    monkeypatch.setattr(timing, "LONG", 10.0)
    monkeypatch.setattr(timing, "long_run_line", lambda here, seconds: seconds)
    one, two = (float(*timing.long_line(config, evaluation, 1000.0, workers)) for workers in (1, 2))
    assert one / 2 <= two < 0.6 * one


def test_a_run_tells_the_estimate_the_workers_of_its_engine(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(Local, "workers", lambda self, config: 7)
    monkeypatch.setattr(pipeline, "long_line", lambda *given: seen.append(given[-1]) or [])
    pipeline.prepare(setup(*TINY, "workers=1"), tmp_path / "run")
    assert seen == [7]


def said(monkeypatch, *overrides):
    out = io.StringIO()
    monkeypatch.setattr(cost, "console", Console(file=out, width=150))
    cell = cost.show_cost(setup(*overrides))
    return out.getvalue(), cell


def test_nothing_is_attacked_or_written(monkeypatch, tmp_path):
    def no_attack(*_):
        raise AssertionError("an attack was run")

    monkeypatch.setattr("dp.evaluation.slots.Slots.run", no_attack)
    text, _ = said(monkeypatch, *TINY, "cost=true", f"results={tmp_path / 'runs'}", "workers=1")
    assert "measured on cpu" in text
    assert "on 1 worker:" in text
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_the_cost_asks_no_cluster_and_says_whose_workers_it_means(engine, monkeypatch):
    def no_cluster(*_):
        raise AssertionError("a cluster was asked")

    monkeypatch.setattr(Ray, "workers", no_cluster)
    text, cell = said(monkeypatch, *TINY, "cost=true", "workers=2", f"engine={engine}")
    alone = " of this machine alone (the engine may have others)" if engine == "ray" else ""
    assert f"on 2 workers{alone}: " in text
    assert cell["one"] == ("worker of this machine" if engine == "ray" else "worker")


def test_a_gpu_needs_neither_itself_nor_files(monkeypatch):
    def no_file(*_):
        raise AssertionError("a file was read")

    monkeypatch.setattr("dp.weights.checkpoints.read", no_file)
    text, _ = said(monkeypatch, *TINY, "cost=rtx4090")
    assert "hours on rtx4090" in text
    assert "165.2 x 0.4" in text
    assert "6 units; the longest takes" in text


def test_hours_are_flops_over_the_assumed_speed():
    """PGD, 2 steps of 2 samples: two forward and backward passes of each, by hand."""
    config = skeleton.without_files(composed(*TINY, "memory=store"))
    evaluation = build(config)
    size = flops.sizes(evaluation.arms["defended"].scored, evaluation.first)
    found = cost.on_gpu(config, evaluation, size, GPUS["h200"], "tf32")
    images, gradients = 4 * 2, 2 * 2  # images x seeds, iterations x samples
    whole = images * gradients * (7 * size.denoiser.gradient + size.classifier.gradient)
    speed = GPUS["h200"].peak["tf32"] * SHARE["tf32"]
    assert found.estimate.parts["defended"].attack == pytest.approx(whole / speed)
    assert found.estimate.seconds == pytest.approx(sum(sum(part) for part in found.estimate.parts.values()))


def test_without_room_calls_are_computed_twice():
    config = skeleton.without_files(composed(*TINY))
    evaluation = build(config)
    size = flops.sizes(evaluation.arms["defended"].scored, evaluation.first)
    wide, narrow = (
        cost.on_gpu(config, evaluation, size, GPUS["h200"]._replace(memory=memory), "float32")
        for memory in (141e9, 4 * size.weights)
    )
    assert (wide.kept, narrow.kept) == (7, 1)
    again = 8 * 4 * 6 * size.denoiser.forward / (67e12 * SHARE["float32"])
    attack = [kind.estimate.parts["defended"].attack for kind in (wide, narrow)]
    assert attack[1] - attack[0] == pytest.approx(again)


@pytest.mark.parametrize("value", ["h100", 3, None])
def test_another_gpu_is_refused(value):
    with pytest.raises(ValueError, match="need cost true, false, h200 or a100 or rtx4090"):
        check_cost(value)


def test_the_estimate_of_a_shard_is_its_share():
    config = composed(*TINY, "workers=1")
    evaluation = build(config)
    work = cost.costs(evaluation, flops.sizes(evaluation.arms["defended"].scored, evaluation.first).rates)
    whole = estimate(evaluation, work).seconds
    padded = estimate(evaluation.of_shard(1, 2, 1), work).seconds
    assert padded == pytest.approx(whole), "two images fill four slots, which take as long"
