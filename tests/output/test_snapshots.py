"""The files of saved states: whole or not used, gone when the rows are written."""

import dataclasses
from typing import NamedTuple

import pytest
import torch

from dp.evaluation.rows import Unit
from dp.evaluation.snapshot import Outcome, Snapshot
from dp.output import record
from dp.output.snapshots import Keeper, Snapshots

UNIT, OTHER = Unit("defended", 5, (7, 3)), Unit("defended", 5, (9, 4))


class State(NamedTuple):
    x_adv: torch.Tensor


def snapshot(steps: int = 1) -> Snapshot:
    outcome = Outcome(torch.rand(1, 2, 2), 0.1, steps, state=State(torch.rand(1, 1, 2, 2)))
    return Snapshot(0, (), (0, 1), (), (outcome, Outcome()), 2.5)


@pytest.fixture
def snapshots(tmp_path):
    return Snapshots(tmp_path, "key", "code")


def test_a_state_is_read_back_and_dropped(snapshots, tmp_path):
    assert snapshots.read(UNIT) is None
    one = snapshot()
    snapshots.write(UNIT, one)
    tensors, fields = snapshots.read(UNIT)
    assert torch.equal(tensors["0.x_adv"], one.outcomes[0].x_adv)
    assert torch.equal(tensors["0.state.x_adv"], one.outcomes[0].state.x_adv)
    assert fields["active"] == [0, 1]
    assert snapshots.read(OTHER) is None
    snapshots.drop(UNIT)
    assert not list(tmp_path.iterdir())
    snapshots.drop(UNIT)


def test_units_that_have_begun_and_units_that_are_done(snapshots, tmp_path):
    snapshots.write(UNIT, snapshot())
    snapshots.write(OTHER, snapshot())
    assert snapshots.begun([]) == (sorted([UNIT, OTHER], key=lambda u: snapshots.path(u).name), [])
    assert snapshots.begun([("null", 5, 7), ("defended", 6, 7), ("defended", 5, 4)]) == ([UNIT], [])
    assert list(tmp_path.iterdir()) == [snapshots.path(UNIT)]


def test_no_changed_byte_passes(snapshots):
    """Any byte changed, anywhere cut: the file is not used, and one line says so."""
    snapshots.write(UNIT, snapshot())
    path = snapshots.path(UNIT)
    data = path.read_bytes()
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        units, (line,) = snapshots.begun([])
        assert units == []
        assert line.startswith(f"note: the saved state {path.name} is not used, because it is damaged")
        with pytest.raises(ValueError, match="damaged"):
            snapshots.read(UNIT)
    for size in range(0, len(data), 11):
        path.write_bytes(data[:size])
        assert snapshots.begun([])[0] == []


def test_a_folder_in_the_files_place(snapshots):
    snapshots.path(UNIT).mkdir()
    assert snapshots.begun([])[0] == []
    snapshots.clear()


@pytest.mark.parametrize(("key", "code", "why"), [("k", "code", "of another run, key"), ("key", "c", "other code")])
def test_what_another_run_or_other_code_wrote_is_not_used(snapshots, key, code, why):
    snapshots.write(UNIT, snapshot())
    units, (line,) = dataclasses.replace(snapshots, key=key, code=code).begun([])
    assert units == []
    assert why in line


def test_what_a_kill_left_of_a_file_goes(snapshots, tmp_path):
    left = tmp_path / f".{snapshots.path(UNIT).name}.host.12.ab.tmp"
    for end in (lambda: snapshots.write(UNIT, snapshot()), lambda: snapshots.drop(UNIT), snapshots.clear):
        left.write_bytes(b"half")
        end()
        assert not left.exists()


def test_clear_deletes_all_states_and_nothing_else(snapshots, tmp_path):
    snapshots.write(UNIT, snapshot())
    snapshots.write(OTHER, snapshot())
    (tmp_path / "rows-1of1-0.jsonl").write_text("")
    snapshots.clear()
    assert [p.name for p in tmp_path.iterdir()] == ["rows-1of1-0.jsonl"]


def test_a_keeper_saves_when_time_has_passed_and_when_told(snapshots, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    keeper = Keeper(snapshots, UNIT, every=2.0)
    keeper.save()
    assert snapshots.read(UNIT) is None  # there is nothing yet
    steps = lambda: snapshots.read(UNIT).fields["outcomes"][0][1]  # noqa: E731
    for at, step, expected in ((101, 1, None), (102.5, 2, 2), (104, 3, 2), (104.6, 4, 4), (105, 5, 4)):
        now[0] = at
        keeper(snapshot(step))
        assert expected == (None if snapshots.read(UNIT) is None else steps())
    keeper.save()
    assert steps() == 5


def test_overwrite_moves_states_aside(snapshots, tmp_path):
    record.begin(tmp_path, {}, "code", overwrite=False)
    snapshots.write(UNIT, snapshot())
    record.begin(tmp_path, {}, "code", overwrite=True)
    assert snapshots.read(UNIT) is None
    assert (tmp_path / "old-0" / snapshots.path(UNIT).name).exists()


def test_two_machines_never_write_the_same_temporary_file(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr("os.fsync", lambda fd: names.extend(p.name for p in tmp_path.glob(".*")))
    for _ in range(2):
        record.write_atomic(tmp_path / "x", b"data")
    assert len(set(names)) == 2
