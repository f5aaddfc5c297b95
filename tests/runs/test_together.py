"""What the workers of a run measure at once: each makes the evaluation anew, and all count."""

import multiprocessing

import pytest

from dp.evaluation.work import Costs
from dp.runs import together
from dp.runs.build import build
from dp.runs.timing import Measured
from dp.runs.workers import listen
from tests.helpers.compose import TINY, composed


def measured(cost: float, whole: bool) -> Measured:
    return Measured({"defended": Costs(2, (0.0, cost, 2 * cost), 3 * cost)}, 8, whole)


def test_the_mean_of_all_workers_counts():
    assert together._mean([measured(1.0, True), measured(3.0, True)]) == measured(2.0, True)
    assert together._mean([measured(1.0, True), measured(3.0, False)]) == measured(3.0, False)


def test_one_worker_is_this_process(monkeypatch):
    evaluation = build(composed(*TINY, "workers=1"))
    asked = []
    monkeypatch.setattr(together, "measured", lambda given: asked.append(given) or "measured")
    found = together.seen_together({}, evaluation, 1)
    assert (asked, found.found) == ([evaluation], "measured")


def test_each_worker_builds_and_all_measure():
    config = composed(*TINY, "workers=2")
    evaluation = build(config)
    found = together.seen_together(config, evaluation, 2)
    assert found.found.whole
    assert set(found.found.work) == set(evaluation.arms)
    assert found.found.work["defended"].total > found.found.work["null"].total > 0
    assert 0.5 < found.start < 60, "CPU seconds of a process that imports torch and builds"


def test_a_worker_that_cannot_build_ends_the_measurement():
    config = composed(*TINY, "workers=2")
    evaluation = build(config)
    with pytest.raises(Exception, match="nothing"):
        together.seen_together({**config, "attack": {"_target_": "nothing.at.all"}}, evaluation, 2)


def test_a_killed_worker_ends_the_measurement(monkeypatch):
    config = composed(*TINY, "workers=2")
    evaluation = build(config)

    def killed(processes, events, on_event):
        processes[0].kill()
        listen(processes, events, on_event)

    monkeypatch.setattr(together, "listen", killed)
    with pytest.raises(OSError, match="a worker died"):
        together.seen_together(config, evaluation, 2)
    assert not multiprocessing.active_children()
