"""The record: torn lines, orphaned parts, locks, other code."""

import json

import pytest
import torch

from dp.evaluation.rows import Group, Row, Unit
from dp.output import record


def group(arm: str, seed: int, *ids: int) -> Group:
    adv = torch.arange(len(ids) * 2 * 3).view(len(ids), 2, 3).float()
    rows = [
        Row(
            **{"arm": arm, "seed": seed, "id": i, "label": 1, "clean": [1, 1], "clean_vote": 1, "adv": [2, 2]},
            **{"adv_vote": 2, "ties": 0, "distance": 0.5, "nfe": 3},
        )
        for i in ids
    ]  # fmt: skip
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


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "rows-a.jsonl").write_text('{"arm": \n{"arm": "defended"}\n')
    with pytest.raises(ValueError, match="overwrite=true"):
        record.read_rows(tmp_path)


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
    record.write_summary(tmp_path, {"format": record.FORMAT, "seconds": 8})
    assert record.read_summary(tmp_path) == {"format": record.FORMAT, "seconds": 8}
    assert set(record.provenance()) == {"versions", "commit", "dirty", "platform"}
    assert len(record.code_hash()) == 64


def test_code_hash_follows_the_code(tmp_path, monkeypatch):
    (tmp_path / "dp").mkdir()
    (tmp_path / "dp" / "a.py").write_text("x = 1")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    before = record.code_hash()
    (tmp_path / "README.md").write_text("words")
    assert record.code_hash() == before
    (tmp_path / "dp" / "a.py").write_text("x = 2")
    assert record.code_hash() != before
