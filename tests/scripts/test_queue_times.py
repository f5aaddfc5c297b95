"""The committed comparison of the simulated queue with runs: the table is that of the times, and the two agree."""

import json

import pytest
import queue_times

from dp.evaluation.schedule import schedule


def test_the_table_is_that_of_the_times_and_the_simulation_agrees_with_the_runs():
    runs = json.loads(queue_times.TIMES.read_text())
    assert queue_times.TABLE.read_text() == queue_times.text(runs)
    assert tuple(run["workers"] for run in runs) == queue_times.WORKERS
    for run in runs:
        assert len(run["seconds"]) == 36
        assert schedule(run["seconds"], run["workers"]).seconds == pytest.approx(run["wall"], rel=0.05)
