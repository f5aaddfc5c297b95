"""What the workers of a run measure at once: each makes the evaluation anew, and all count."""

import threading
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from dp.evaluation.work import Costs
from dp.runs import together
from dp.runs.build import build
from dp.runs.timing import Measured
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


def test_a_worker_that_cannot_build_does_not_keep_the_others_waiting(monkeypatch):
    gate = threading.Barrier(2)
    monkeypatch.setattr(together, "_gate", gate)
    monkeypatch.setattr(together, "build", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        together._seen({})
    assert gate.broken


def test_the_error_that_broke_the_gate_is_told():
    futures = [Future(), Future()]
    futures[0].set_exception(threading.BrokenBarrierError())
    futures[1].set_exception(ValueError("need a file"))
    with pytest.raises(ValueError, match="need a file"):
        together._results(futures)
    futures = [Future()]
    futures[0].set_exception(BrokenProcessPool())
    with pytest.raises(OSError, match="a measuring process died, perhaps out of memory: workers=1"):
        together._results(futures)


def test_a_worker_that_cannot_build_ends_the_measurement():
    config = composed(*TINY, "workers=2")
    evaluation = build(config)
    with pytest.raises(Exception, match="nothing"):
        together.seen_together({**config, "attack": {"_target_": "nothing.at.all"}}, evaluation, 2)
