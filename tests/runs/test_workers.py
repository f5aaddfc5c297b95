"""Worker processes: what they raise arrives in one line, and a death is noticed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dp.output.iterations import write_iterations
from dp.output.record import merge, read_rows
from dp.output.snapshots import Snapshots
from dp.runs.build import build as evaluation_of
from dp.runs.engines.interface import Work
from dp.runs.keys import run_key
from dp.runs.sources import sources_hash
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
        run_units(
            Work(build, {}, [], tmp_path, "1of1"), evaluation_of(composed(*TINY)), ["cpu"] * 2, lambda event: None
        )


def test_events_tell_every_iteration_and_then_the_rows(tmp_path):
    config = composed(*TINY, "protocol.seeds=[5]")
    evaluation, events = evaluation_of(config), []
    units = evaluation.plan()
    run_units(Work(evaluation_of, config, units, tmp_path, "1of1"), evaluation, ["cpu"], events.append)
    assert [e.step for e in events if e.unit.arm == "defended"] == [1, 2, 2]
    assert [e.rows is not None for e in events if e.unit.arm == "defended"] == [False, False, True]
    assert len(read_rows(tmp_path)) == 12


LONG = ["protocol.seeds=[5]", "attack.iterations=20", "protocol.images=12", "save_every=1000"]


@pytest.mark.parametrize(("workers", "stopped_by"), [(1, KeyboardInterrupt), (1, SystemExit), (2, KeyboardInterrupt)])
def test_a_stopped_run_saves_its_state_and_goes_on(workers, stopped_by, tmp_path):
    """Stopped when as many units as there are workers are under way, or the last one is; no state is saved by time. The
    second start repeats no iteration.
    """
    config = composed(*TINY, *LONG)
    evaluation, steps = evaluation_of(config), {}
    units = [unit for unit in evaluation.plan() if unit.arm == "defended"]
    snapshots = Snapshots(tmp_path / "stopped", run_key(config), sources_hash(config))
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    whole, stopped = (Work(evaluation_of, config, units, tmp_path / name, "1of1") for name in ("whole", "stopped"))
    run_units(whole, evaluation, ["cpu"], lambda event: None)

    def stop(event):
        steps[event.unit] = event.step if event.rows is None else 0
        if sum(step >= 3 for step in steps.values()) == workers or steps.get(units[-1], 0) >= 3:
            raise stopped_by

    with pytest.raises(stopped_by):
        run_units(stopped, evaluation, ["cpu"] * workers, stop)
    begun, lines = snapshots.begun(read_rows(tmp_path / "stopped"))
    assert lines == []
    assert 1 <= len(begun) <= workers
    done = [outcome[1] for outcome in snapshots.read(begun[0]).fields["outcomes"]]
    assert done[0] >= 2
    left, again = evaluation.plan(read_rows(tmp_path / "stopped"), begun), []
    left = [unit for unit in left if unit.arm == "defended"]
    run_units(stopped._replace(units=left), evaluation, ["cpu"], again.append)
    assert next(event.step for event in again if event.unit == begun[0]) == done[0] + 1
    assert merge(tmp_path / "stopped") == merge(tmp_path / "whole")
    for name in ("whole", "stopped"):
        write_iterations(tmp_path / name, merge(tmp_path / name))
    for file in ("images.jsonl", "iterations.json"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert len(json.loads((tmp_path / "whole" / "iterations.json").read_text())["defended"]["loss"]) == 20
    assert not list((tmp_path / "stopped").glob("*state-*"))


def test_a_state_that_does_not_fit_the_attack_is_not_used(tmp_path, capsys):
    """As when an attack outside this tree was edited: its state has other fields, the rows are those of a new start."""
    config = composed(*TINY, *LONG)
    evaluation, other = evaluation_of(config), evaluation_of(composed(*TINY, *LONG, "attack=square"))
    (unit, *_), taken = evaluation.plan(), []
    other.run(unit, on_snapshot=taken.append)
    Snapshots(tmp_path, run_key(config), sources_hash(config)).write(unit, taken[3])
    run_units(Work(evaluation_of, config, [unit], tmp_path, "1of1"), evaluation, ["cpu"], lambda event: None)
    assert "is not used, because need the attack's own state" in " ".join(capsys.readouterr().out.split())
    assert list(read_rows(tmp_path).values()) == evaluation.run(unit).rows


FULL = """
from pathlib import Path
from dp.evaluation.rows import Unit
from dp.runs.engines.interface import Work
from dp.runs.workers import run_units
from tests.runs.test_workers import failing

if __name__ == "__main__":
    units = [Unit("defended", 2024, (10_000 + k,)) for k in range(5000)]
    run_units(Work(failing, {}, units, Path("."), "1of1"), None, ["cpu"] * 2, lambda event: None)
"""


def test_a_run_of_many_units_ends_when_a_worker_fails(tmp_path):
    """What no worker has read is more than a pipe holds: the process must not wait until somebody reads it."""
    (tmp_path / "full.py").write_text(FULL)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "full.py")]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "missing weights: need x" in ended.stderr
