"""The record: torn lines, orphaned parts, locks, other code."""

import fcntl
import json

import pytest
import torch

from dp.certification import rows as certified
from dp.evaluation.rows import Group, Unit
from dp.output import record
from tests.helpers.locks import SAID, no_locks
from tests.helpers.rows import whole_row, whole_summary


def group(arm: str, seed: int, *ids: int) -> Group:
    adv = torch.arange(len(ids) * 2 * 3).view(len(ids), 2, 3).float()
    rows = [whole_row(arm, seed, i) for i in ids]
    return Group(Unit(arm, seed, ids), rows, torch.full((len(ids), 1, 2, 2), 0.5), adv + 1, adv, 1.5)


def test_parts_and_rows_come_back(tmp_path):
    writer = record.Writer(tmp_path, "a")
    writer.write(group("defended", 0, 4, 2))
    writer.write(group("null", 0, 4, 2))
    writer.close()
    part = record.read_part(tmp_path / "part-a-0.safetensors")
    assert (part["arm"], part["seed"], part["ids"].tolist()) == ("defended", 0, [4, 2])
    assert torch.equal(part["adv"], group("defended", 0, 4, 2).adv)
    assert part["x_adv"].dtype == torch.float32
    assert set(record.read_rows(tmp_path)) == {("defended", 0, 4), ("defended", 0, 2), ("null", 0, 4), ("null", 0, 2)}
    assert record.seconds(tmp_path) == 3.0
    merged = record.merge(tmp_path)
    assert [(r["arm"], r["id"]) for r in merged] == [("defended", 2), ("defended", 4), ("null", 2), ("null", 4)]
    assert [json.loads(x) for x in (tmp_path / "images.jsonl").read_text().splitlines()] == merged


def test_many_classes_are_kept_in_half_precision(tmp_path):
    one = group("defended", 0, 1)
    writer = record.Writer(tmp_path, "a")
    writer.write(one._replace(adv=torch.randn(1, 2, 101)))
    writer.close()
    part = record.read_part(tmp_path / "part-a-0.safetensors")
    assert (part["adv"].dtype, part["clean"].dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize("kept", [0, 1, 30, -1])
def test_a_torn_last_line_is_dropped(tmp_path, kept):
    """Cut anywhere inside the last line: the rows before it stay, the next writer goes on behind them."""
    writer = record.Writer(tmp_path, "a")
    writer.write(group("defended", 0, 4, 2))
    writer.close()
    path = tmp_path / "rows-a.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:kept] if kept else first)
    assert set(record.read_rows(tmp_path)) == {("defended", 0, 4)}
    writer = record.Writer(tmp_path, "a")
    writer.write(group("defended", 0, 2))
    writer.close()
    assert set(record.read_rows(tmp_path)) == {("defended", 0, 4), ("defended", 0, 2)}
    assert len(path.read_bytes().splitlines()) == 2


BAD = [b'{"arm": \n', b"\xff\xfe\x00\n", b"\n", b"[1, 2]\n", b'{"arm": "defended"}\n', b"[" * 100_000 + b"\n"]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_bad_row_costs_that_row(tmp_path, bad):
    """It is left out and said, and the next writer takes it out of the file and keeps the part that it shares."""
    writer = record.Writer(tmp_path, "a")
    writer.write(group("defended", 0, 4, 2))
    writer.write(group("defended", 0, 7))
    writer.close()
    path = tmp_path / "rows-a.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + bad + lines[2])
    assert set(record.read_rows(tmp_path)) == {("defended", 0, 4), ("defended", 0, 7)}
    assert record.damaged_rows(tmp_path) == [f"damaged: 1 lines of {path} cannot be read, their rows do not count"]
    writer = record.Writer(tmp_path, "a")
    assert writer.next == 2
    writer.write(group("defended", 0, 2))
    writer.close()
    assert record.damaged_rows(tmp_path) == []
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)
    assert len(record.read_rows(tmp_path)) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [("id", "4"), ("id", True), ("adv", None), ("adv", [1, "2"]), ("distance", "0"), ("lost_at", 0.5), ("arm", 1)],
)
def test_a_row_with_a_value_of_another_kind_is_a_bad_row(tmp_path, field, value):
    record.append(tmp_path / "rows-a.jsonl", [whole_row("null", 0, 1), {**whole_row("null", 0, 2), field: value}])
    assert set(record.read_rows(tmp_path)) == {("null", 0, 1)}


@pytest.mark.parametrize("bad", [b"{torn\n", b'{"seconds": "1"}\n', None])
def test_a_bad_timing_file_costs_times_alone(tmp_path, bad):
    writer = record.Writer(tmp_path, "a")
    writer.write(group("defended", 0, 4))
    writer.close()
    path = tmp_path / "timing-a.jsonl"
    if bad is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(path.read_bytes() + bad)
    assert record.seconds(tmp_path) == (0 if bad is None else 1.5)
    (line,) = record.damaged_times(tmp_path)
    assert str(path) in line
    writer = record.Writer(tmp_path, "a")
    writer.write(group("defended", 0, 2))
    writer.close()
    assert len(record.read_rows(tmp_path)) == 2
    assert record.seconds(tmp_path) == (0 if bad is None else 3.0)


def test_a_damaged_part_stays_and_is_named_where_its_images_are_needed(tmp_path):
    writer = record.Writer(tmp_path, "a")
    writer.write(group("defended", 0, 4))
    writer.close()
    path = tmp_path / "part-a-0.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=rf"^need {path} with attacked images and logits, got a damaged file: "):
        record.read_part(path)
    writer = record.Writer(tmp_path, "a")
    assert writer.next == 1
    writer.close()
    assert path.exists()
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="got a directory: "):
        record.read_part(path)


@pytest.mark.parametrize("text", ["", "{torn", "[]", '{"code": 5, "config": {}}', '{"config": {}}'])
def test_a_damaged_start_is_refused_and_overwrite_begins_anew(tmp_path, text):
    (tmp_path / "start.json").write_text(text)
    with pytest.raises(ValueError, match=rf"^need {tmp_path}/start\.json as it was written, got .*overwrite=true"):
        record.begin(tmp_path, {}, "code", overwrite=False)
    record.begin(tmp_path, {}, "code", overwrite=True)
    assert (tmp_path / "old-0" / "start.json").read_text() == text
    assert record.read_start(tmp_path) == {"code": "code", "config": {}}


def test_what_is_set_aside_never_meets_an_earlier_one(tmp_path):
    """Somebody deleted old-0 and kept old-1."""
    (tmp_path / "old-1").mkdir()
    (tmp_path / "old-mine").mkdir()
    (tmp_path / "start.json").write_text("{torn")
    record.begin(tmp_path, {}, "code", overwrite=True)
    assert (tmp_path / "old-2" / "start.json").read_text() == "{torn"


def test_rows_of_unknown_code_are_refused(tmp_path):
    record.append(tmp_path / "rows-a.jsonl", [whole_row("null", 0, 1)])
    with pytest.raises(ValueError, match="which says what code made the rows, got none: add overwrite=true"):
        record.begin(tmp_path, {}, "code", overwrite=False)
    record.begin(tmp_path, {}, "code", overwrite=True)
    assert record.read_rows(tmp_path) == {}
    assert (tmp_path / "old-0" / "rows-a.jsonl").exists()


def test_directories_in_the_place_of_files(tmp_path):
    for name in ("start.json", "rows-a.jsonl", "images.jsonl"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"images\.jsonl, got a directory"):
        record.begin(tmp_path, {}, "code", overwrite=False)
    record.begin(tmp_path, {}, "code", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "old-0").iterdir()) == ["images.jsonl", "rows-a.jsonl", "start.json"]


def test_parts_without_rows_are_deleted(tmp_path):
    """Killed between a part and its rows: the part goes, its number is free again."""
    writer = record.Writer(tmp_path, "a")
    writer.write(group("defended", 0, 4))
    writer.write(group("defended", 0, 2))
    writer.close()
    lines = (tmp_path / "rows-a.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "rows-a.jsonl").write_bytes(lines[0])
    writer = record.Writer(tmp_path, "a")
    assert writer.next == 1
    assert [p.name for p in tmp_path.glob("part-*")] == ["part-a-0.safetensors"]
    writer.close()


def test_one_writer_per_shard(tmp_path):
    writer = record.Writer(tmp_path, "a")
    with pytest.raises(OSError, match="another process"):
        record.Writer(tmp_path, "a", patience=0.3)
    record.Writer(tmp_path, "b").close()
    writer.close()
    record.Writer(tmp_path, "a").close()


@pytest.mark.parametrize("writer", [record.Writer, certified.Writer])
def test_a_disk_without_file_locks_is_said(writer, tmp_path, monkeypatch, capsys):
    """By every writer, and it works."""
    writer(tmp_path, "a")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(fcntl, "flock", no_locks)
    writer(tmp_path, "b")
    assert capsys.readouterr().out == f"note: {tmp_path} (shard b) {SAID}\n"


def test_other_code_is_refused_and_overwrite_moves_aside(tmp_path):
    folder = tmp_path / "run"
    record.begin(folder, {"a": 1}, "code one", overwrite=False)
    record.begin(folder, {"a": 1}, "code one", overwrite=False)
    writer = record.Writer(folder, "a")
    writer.write(group("defended", 0, 4))
    writer.close()
    with pytest.raises(ValueError, match="overwrite=true"):
        record.begin(folder, {"a": 1}, "code two", overwrite=False)
    record.begin(folder, {"a": 1}, "code two", overwrite=True)
    assert record.read_rows(folder) == {}
    assert (folder / "old-0" / "rows-a.jsonl").exists()
    record.begin(folder, {"a": 1}, "code two", overwrite=True)
    assert (folder / "old-1" / "start.json").exists()


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OSError, match="run"):
        record.begin(tmp_path / "run", {}, "code", overwrite=False)


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "x"
    record.write_atomic(path, b"old")

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="space"):
        record.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def test_summary_and_provenance(tmp_path):
    assert record.read_summary(tmp_path) is None
    summary = whole_summary()
    record.write_summary(tmp_path, summary)
    assert record.read_summary(tmp_path) == summary
    assert set(record.provenance()) == {"versions", "commit", "dirty", "platform"}
    assert len(record.code_hash()) == 64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["robust"]["vote"].update(n="4"), "a text for robust.vote.n instead of a whole number"),
        (lambda s: s["robust"].pop("vote"), "no robust.vote"),
        (
            lambda s: s["standard"]["single"].update(wilson95=[1.0]),
            "1 values for standard.single.wilson95 instead of 2",
        ),
        (lambda s: s.update(caveats=[]), "a list for caveats instead of a mapping"),
        (lambda s: s["config"]["protocol"].update(report=[1]), "a whole number for config.protocol.report.0"),
        (lambda s: s.update(audited=5), "a whole number for audited"),
        (lambda s: s.pop("seconds"), "no seconds"),
    ],
)
def test_a_damaged_summary_says_where(tmp_path, change, said):
    summary = whole_summary()
    change(summary)
    record.write_summary(tmp_path, summary)
    with pytest.raises(
        ValueError, match=rf"^need {tmp_path}/summary\.json as a run writes it, got {said}.*: delete it"
    ):
        record.read_summary(tmp_path)


def test_archived_summaries_have_the_shape():
    folders = [path.parent for path in (record.ROOT / "results" / "measured").glob("*/summary.json")]
    assert len(folders) > 30
    assert all(map(record.read_summary, folders))


def test_code_hash_follows_the_code(tmp_path, monkeypatch):
    (tmp_path / "dp").mkdir()
    (tmp_path / "dp" / "a.py").write_text("x = 1")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    before = record.code_hash()
    (tmp_path / "README.md").write_text("words")
    assert record.code_hash() == before
    (tmp_path / "dp" / "a.py").write_text("x = 2")
    assert record.code_hash() != before
