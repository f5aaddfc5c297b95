"""How far a run is, from its folder alone: unfinished, finished, damaged at every file, by a process that is gone."""

import json
import os
import subprocess
import sys

import pytest

from dp.commands import status as command
from dp.output import record, status
from dp.output.starts import STARTS, note_start, read_starts
from dp.output.status import State, status_of
from tests.helpers.compose import TINY, composed, finished

WORK = {"defended": 30.0, "undefended": 5.0, "null": 15.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a-run"
    assert finished(composed(*TINY, "audit=false", "workers=1"), folder) is not None
    return folder


@pytest.fixture
def half(run, tmp_path):
    """A run of 2 seeds x 4 images of which the rows of the first seed are written, by this process."""
    folder = tmp_path / "half"
    folder.mkdir()
    rows = [line for line in (run / record.IMAGES).read_text().splitlines() if json.loads(line)["seed"] == 5]
    (folder / "rows-1of1-0.jsonl").write_text("".join(row + "\n" for row in rows))
    (folder / "timing-1of1-0.jsonl").write_text(json.dumps({"seconds": 100.0}) + "\n")
    (folder / record.START).write_bytes((run / record.START).read_bytes())
    note_start(folder, "1/1", 2, 24, WORK)
    return folder


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def begin(folder, *starts):
    """The lines of starts, oldest first: each the line of this process but for what is given."""
    own = read_starts(folder)[0]
    (folder / STARTS).write_text("".join(json.dumps({**own, **start}) + "\n" for start in starts))


def test_a_finished_run(run):
    found = status_of(run)
    assert (found.state, found.done, found.rows, found.audited) == (State.FINISHED, 24, 24, None)
    assert found.robust == record.read_summary(run)["robust"]["single"]["value"]
    assert found.hosts == (os.uname().nodename,)


def test_a_run_under_way_goes_on_at_its_own_speed(half):
    found = status_of(half)
    assert (found.state, found.done, found.rows) == (State.RUNNING, 12, 24)
    assert found.seconds_left == pytest.approx(50.0)  # half is done in 100 seconds of two workers


def test_the_time_to_go_knows_that_conditions_differ(half):
    rows = (half / "rows-1of1-0.jsonl").read_text().splitlines()
    some = [row for row in rows if json.loads(row)["arm"] == "undefended"]
    (half / "rows-1of1-0.jsonl").write_text("".join(row + "\n" for row in some))
    done = 4 * WORK["undefended"]
    left = 8 * sum(WORK.values()) - done
    assert status_of(half).seconds_left == pytest.approx(100.0 * left / done / 2)


def test_a_dead_process_has_stopped_and_another_machine_is_named(half, dead):
    (start,) = read_starts(half)
    (half / STARTS).write_text(json.dumps({**start, "pid": dead}) + "\n")
    assert status_of(half).state == State.STOPPED
    with (half / STARTS).open("a") as file:
        file.write(json.dumps({**start, "host": "far-away"}) + "\n" + '{"torn')
    found = status_of(half)
    assert (found.state, found.hosts) == (State.ELSEWHERE, (start["host"], "far-away"))


def test_all_shards_work_on_what_is_left(half):
    """Half is done in 100 seconds of a worker, and 8 shards of a worker do the other half."""
    begin(half, *[{"shard": f"{k}/8", "workers": 1, "host": f"machine-{k}"} for k in range(1, 9)])
    assert status_of(half).seconds_left == pytest.approx(100 / 8)


def test_a_start_replaces_those_of_its_shard_and_those_of_another_division(half):
    one, two = {"shard": "1/2", "workers": 4}, {"shard": "2/2", "workers": 3}
    before = [{"shard": f"{k}/8", "workers": 50} for k in range(1, 9)]
    begin(half, *before, one, two, {**one, "workers": 2})
    assert status_of(half).seconds_left == pytest.approx(100 / (2 + 3))


def test_workers_that_have_ended_do_not_count(half, dead):
    begin(half, {"shard": "1/2", "workers": 7, "pid": dead}, {"shard": "2/2", "workers": 2})
    assert status_of(half).seconds_left == pytest.approx(100 / 2)
    begin(half, *[{"shard": f"{k}/2", "workers": 2, "pid": dead} for k in (1, 2)])
    assert status_of(half).seconds_left == pytest.approx(100 / 4)


@pytest.mark.parametrize(
    ("who", "state"),
    [
        (["here", "dead"], State.RUNNING),
        (["here", "away"], State.RUNNING),
        (["away", "dead"], State.ELSEWHERE),
        (["dead", "dead"], State.STOPPED),
    ],
    ids=str,
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_run_goes_on_while_any_shard_does(half, dead, who, state, turned):
    kinds = {"here": {}, "dead": {"pid": dead}, "away": {"host": "far-away"}}
    begin(half, *[{"shard": f"{k}/2", **kinds[name]} for k, name in enumerate(who[:: -1 if turned else 1], 1)])
    assert status_of(half).state == state


def test_a_run_of_before_has_no_line_of_its_start(half):
    (half / STARTS).unlink()
    found = status_of(half)
    assert (found.done, found.rows, found.seconds_left, found.hosts) == (12, 24, None, ())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", None], ids=repr)
@pytest.mark.parametrize(
    "name", [record.SUMMARY, record.START, STARTS, "audit.json", "rows-1of1-0.jsonl", "timing-1of1-0.jsonl"]
)
def test_damaged_files_are_told_without_a_traceback(half, name, content, capsys):
    path = half / name
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert command.main([str(half)]) == 0
    assert "Traceback" not in capsys.readouterr().out


def test_the_list_names_every_run_and_what_is_wrong(run, half, capsys):
    (half / record.SUMMARY).write_text("{")
    assert command.main([str(run.parent), str(half)]) == 0
    out = capsys.readouterr().out
    assert "1 finished, 1 damaged" in out
    assert "half: need" in out


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert command.main([str(tmp_path)]) == 2
    assert command.main([str(tmp_path / "none")]) == 2
    assert "error: need the folder of a run or of runs" in capsys.readouterr().err


def test_an_archived_run_is_finished(run, tmp_path):
    from dp.commands.archive import archive

    assert status.is_run(archive(run, tmp_path))
    assert status_of(tmp_path / run.name).state == State.FINISHED
