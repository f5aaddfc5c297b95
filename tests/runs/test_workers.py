"""Worker processes: what they raise arrives in one line, and a death is noticed."""

import os

import pytest

from dp.output.record import read_rows
from dp.runs.build import build as evaluation_of
from dp.runs.workers import run_units
from tests.helpers.compose import TINY, composed


def dying(config: dict):
    """Killed while it builds, as for lack of memory."""
    os._exit(9)


def failing(config: dict):
    raise FileNotFoundError("missing weights: need x")


def broken(config: dict):
    raise KeyError("a bug")


@pytest.mark.parametrize(
    ("build", "error", "said"),
    [
        (dying, OSError, r"a worker died \(exit code 9\)"),
        (failing, OSError, "^missing weights: need x$"),
        (broken, RuntimeError, r"(?s)in a worker process:\n.*KeyError: 'a bug'"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_raised(build, error, said, tmp_path):
    with pytest.raises(error, match=said):
        run_units(build, {}, evaluation_of(composed(*TINY)), [], tmp_path, "1of1", 2, lambda event: None)


def test_events_tell_every_iteration_and_then_the_rows(tmp_path):
    config = composed(*TINY, "protocol.seeds=[5]")
    evaluation, events = evaluation_of(config), []
    units = evaluation.plan()
    run_units(evaluation_of, config, evaluation, units, tmp_path, "1of1", 1, events.append)
    assert [e.step for e in events if e.unit.arm == "defended"] == [1, 2, 2]
    assert [e.rows is not None for e in events if e.unit.arm == "defended"] == [False, False, True]
    assert len(read_rows(tmp_path)) == 12
