"""The work of a run is counted before it: the time to go is right from its first line, on a clock that counts calls."""

import dataclasses
import io
import time
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from rich.console import Console
from torch import Tensor

from dp.attacks.base import Attack
from dp.attacks.pgd_eot import PGD
from dp.attacks.union import Union
from dp.evaluation import work as counted_work
from dp.evaluation.rows import Event
from dp.evaluation.work import BACKWARD, MOST_STEPS, Costs, costs, in_evaluations, relative_cost, total
from dp.output.progress import Bar, Display
from dp.output.tracking import NoTracking
from dp.runs.build import build
from tests.helpers.compose import TINY, composed

RATIO = 0.6  # of the classifier's cost to the denoiser's
FACTOR = 1.5
STEADY = "protocol.judge.retire=false"  # how many images break is not known before
RUNS = [
    [],
    ["attack=apgd_ce"],
    ["attack=union", "purifier=diffpure"],
    ["protocol=strict", STEADY, "purifier.steps=2", "attack.attacks.apgd_ce.iterations=2"],
    ["protocol=hill", STEADY, "protocol.judge.screen=4", "purifier.steps=2"],
    ["attack=square", "attack.iterations=6", "purifier=none"],
    ["attack=transfer", "protocol=dwbox"],
    ["attack=stadv", "threat_model=stadv", "purifier.steps=2"],
]


def estimates(evaluation, work, monkeypatch) -> tuple[list[tuple[float, float]], float]:
    """The time and the estimate of the time to go at every event, and the time of the whole run.

    The clock counts: an image in a call of the denoiser is 1, in one of the classifier `RATIO`, a backward pass more.
    """
    clock, told = SimpleNamespace(now=0.0), []
    monkeypatch.setattr("dp.output.progress.time.monotonic", lambda: clock.now)

    def counts(price):
        def hook(module, inputs, output):
            clock.now += len(inputs[0]) * price * (1 + BACKWARD if output.requires_grad else 1)

        return hook

    scored = evaluation.arms["defended"].scored
    hooks = [scored.classifier.register_forward_hook(counts(RATIO))]
    hooks += [] if scored.denoiser is None else [scored.denoiser.register_forward_hook(counts(1.0))]
    plain = Bar.seconds_left

    def seconds_left(self, done, ours, now):
        left = plain(self, done, ours, now)
        told.append((now, left))
        return left

    monkeypatch.setattr(Bar, "seconds_left", seconds_left)
    units = evaluation.plan()
    display = Display(Console(file=io.StringIO()), evaluation, units, [], NoTracking("", None, {}), work)  # pyright: ignore[reportArgumentType]
    for unit in units:
        steps = evaluation.arms[unit.arm].attack.steps
        group = evaluation.run(unit, lambda step, steps, _, unit=unit: display(Event(unit, step, steps)))
        display(Event(unit, steps, steps, group.rows))
    for hook in hooks:
        hook.remove()
    return [(now, left) for now, left in told if left is not None], clock.now


@pytest.mark.parametrize("overrides", RUNS, ids=" ".join)
def test_the_time_to_go_is_right_from_the_first_line(overrides, monkeypatch):
    known = composed(*overrides)["attack"]
    small = [word for word in TINY if not word.startswith("attack.") or word[7:].partition("=")[0] in known]
    evaluation = build(composed(*small, *overrides))
    work = costs(evaluation, in_evaluations(RATIO))
    told, end = estimates(evaluation, work, monkeypatch)
    assert told[0][0] < end / 4, "the first line comes late"
    for now, left in told:
        if end - now > 0.05 * end:
            assert (end - now) / FACTOR < left < (end - now) * FACTOR, f"{left:.0f} for {end - now:.0f} at {now:.0f}"
    assert total(evaluation.plan(), work, evaluation.lanes) == pytest.approx(end, rel=0.4)


def test_the_work_of_a_plain_attack_by_hand():
    """PGD, 2 steps of 2 samples, 3 votes: two gradients and twice three forward passes a sample, 7 NFE each."""
    evaluation = build(composed(*TINY, "memory=store"))
    work = costs(evaluation, in_evaluations(RATIO))
    forward, gradient = 7 + RATIO, (1 + BACKWARD) * (7 + RATIO)
    assert work["defended"].counted == pytest.approx((0, 2 * gradient, 4 * gradient))
    assert work["defended"].score == pytest.approx(2 * 3 * forward)
    bare = (1 + BACKWARD) * RATIO  # without noise one sample is all
    assert work["undefended"].counted == pytest.approx((0, bare, 2 * bare))
    assert work["undefended"].score == pytest.approx(2 * RATIO)
    assert work["null"].total == pytest.approx(3 * forward)  # one random point


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in a union"])
def test_the_work_of_the_autoattack_package_is_that_of_its_real_calls(alone):
    """No image breaks in so small a ball; the package leaves broken ones out."""
    evaluation = build(composed(*TINY, "attack=autoattack_upstream", "threat_model.eps=1e-6", "memory=store"))
    package = evaluation.arms["defended"].attack
    attack = package if alone else Union({"pgd": PGD(1, 1), "package": package}, confirm=1)
    arms = {"defended": evaluation.arms["defended"]._replace(attack=attack)}
    evaluation = dataclasses.replace(evaluation, arms=arms)
    seen, work = [0.0], costs(evaluation, in_evaluations(0.0))

    def count(module, inputs, output):
        seen[0] += len(inputs[0]) * (1 + BACKWARD if output.requires_grad else 1)

    denoiser = evaluation.arms["defended"].scored.denoiser
    assert denoiser is not None
    denoiser.register_forward_hook(count)
    unit = evaluation.plan()[0]
    evaluation.run(unit)
    assert seen[0] / len(unit.ids) == pytest.approx(work["defended"].total, rel=0.05)


def test_the_work_of_decisions_is_that_of_an_attack_with_a_start():
    """Digits are misclassified under uniform noise, so every iteration has its searches beside the direction. The
    search for a step counts with all of its halvings, after which it gives up.
    """
    words = ("purifier=diffpure", "purifier.steps=1", "dataset.draws_per_call=3", "memory=store")
    attack = ("attack=decision", "attack.iterations=4", "attack.directions=10", "attack.eot=3", "attack.confirm=3")
    small = [word for word in TINY if not word.startswith("attack.")]
    evaluation = build(composed(*small, *words, *attack))
    seen, counted = [0], costs(evaluation, in_evaluations(0.0))["defended"]
    denoiser = evaluation.arms["defended"].scored.denoiser
    assert denoiser is not None
    denoiser.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    unit = evaluation.plan()[0]
    evaluation.run(unit)
    assert 0.5 * counted.total < sum(seen) / len(unit.ids) <= counted.total


def test_steps_that_are_not_counted_cost_as_much_as_the_others():
    long = Costs(10**9, (5.0, 7.0, 9.0), 3.0)
    assert long.attack(2) == 9
    assert long.attack(10) == 5 + 2 * 10
    assert long.total == 5 + 2e9 + 3
    evaluation = build(composed(*TINY, f"attack.iterations={10 * MOST_STEPS}", "purifier=none"))
    work = costs(evaluation, in_evaluations(RATIO))
    assert work["defended"].attack(10 * MOST_STEPS) == pytest.approx(10 * work["defended"].attack(MOST_STEPS))


def test_other_processes_do_not_make_the_classifier_dearer(monkeypatch):
    """The wall clock runs on while another process has the core; the time that this one computes does not."""
    evaluation = build(composed("purifier=diffpure", "protocol.images=2", "workers=1"))
    model, seen = evaluation.arms["defended"].scored, []
    monkeypatch.setattr(model.classifier, "forward", lambda x: time.sleep(0.05) or seen.append(x) or x)
    assert relative_cost(model, evaluation.first.x) < 5
    assert len(seen) == 3


def test_an_attack_of_too_many_calls_is_counted_by_its_first_steps(monkeypatch):
    """SPSA asks for a batch of values in each iteration: all of them count, though the counting ends before."""
    words = ("attack=spsa", "attack.directions=10", "attack.eot=3", "purifier=none", "protocol.images=2", "workers=1")
    few, many = (build(composed(*words, f"attack.iterations={n}")) for n in (3, 30))
    step = costs(few, in_evaluations(RATIO))["defended"]
    monkeypatch.setattr(counted_work, "MOST_CALLS", 25)
    found = costs(many, in_evaluations(RATIO))["defended"]
    assert 2 <= len(found.counted) < 30
    each = step.counted[2] - step.counted[1]
    assert found.attack(30) - found.counted[0] == pytest.approx(30 * each)


class At(NamedTuple):
    x_adv: Tensor


@dataclasses.dataclass(frozen=True)
class Fixed(Attack):
    """Two steps of one gradient each, times a mask of fixed size."""

    side: int

    @property
    def steps(self) -> int:
        return 2

    @property
    def samples(self) -> int:
        return 3

    def says(self, through):
        return "a fixed mask"

    def start(self, model, x, y, threat, rng):
        return At(x)

    def step(self, model, state, x, y, threat, rng):
        _, gradient = model.loss_gradient(state.x_adv, y, rng, 3)
        return At(threat.project(state.x_adv + 0.01 * torch.ones(1, 1, self.side, self.side) * gradient.sign(), x))


class NeedsAWrongStart(Fixed):
    """It walks back from a point that the defense gets wrong, and asks for ever where there is none."""

    tries = 10

    def start(self, model, x, y, threat, rng):
        for k in range(self.tries):
            if (model.logits(x, rng.draw(k), 1).argmax(-1) != y).all():
                return At(x)
        raise AssertionError("no start")


class Waits(NeedsAWrongStart):
    tries = 10**9


@pytest.mark.parametrize("attack", [Fixed(48), NeedsAWrongStart(48), Waits(48), Fixed(7)], ids=lambda a: f"{a}")
def test_no_attacks_own_code_stops_the_count(attack, monkeypatch):
    """On 48x48 images, with a stand-in that is never wrong. A step then counts as one gradient of its samples."""
    monkeypatch.setattr(counted_work, "MOST_CALLS", 50)
    evaluation = build(composed("purifier=none", "protocol.images=2", "attack=none", "workers=1"))
    one = evaluation.subset
    large = one._replace(x=torch.nn.functional.interpolate(one.x, size=(48, 48)))
    arms = {name: arm._replace(attack=attack) for name, arm in evaluation.arms.items()}
    work = costs(dataclasses.replace(evaluation, subset=large, arms=arms), in_evaluations(RATIO))
    gradient = 3 * (1 + BACKWARD) * RATIO  # its three samples are in one call of four
    assert work["defended"].counted == pytest.approx((0, gradient, 2 * gradient))
