"""The TSV file of a shard survives a kill at any byte."""

import pytest

from dp.certification import rows
from dp.certification.curve import certified, curve, figures
from dp.certification.rows import HEADER, Row, Writer, merge, parsed, read, read_all

ROWS = [
    Row(7, 3, 3, 0.4159023482, 990, 1000, 1, 1100),
    Row(12, 0, -1, 0.0, 480, 1000, 0, 1100),
    Row(2, 9, 4, 0.12, 700, 1000, 0, 1100),
]


def write(folder, some, label="1of1"):
    with Writer(folder, label) as writer:
        for row in some:
            writer.write(row)
    return folder / f"rows-{label}.tsv"


def test_what_is_written_is_read(tmp_path):
    path = write(tmp_path, ROWS)
    assert read(path) == ROWS
    assert path.read_text().splitlines()[:2] == [
        "id\tlabel\tpredicted\tradius\tcount\tn\tcorrect\tevaluations",
        "7\t3\t3\t0.4159023482\t990\t1000\t1\t1100",
    ]


def test_every_row_is_on_the_disk_when_it_is_written(tmp_path):
    with Writer(tmp_path, "1of1") as writer:
        for k, row in enumerate(ROWS, 1):
            writer.write(row)
            assert read(writer.path) == ROWS[:k]


def test_a_file_that_is_torn_anywhere_ends_with_the_same_bytes(tmp_path):
    whole = write(tmp_path, ROWS).read_bytes()
    for cut in range(len(whole)):
        (tmp_path / "rows-1of1.tsv").write_bytes(whole[:cut])
        done = read(tmp_path / "rows-1of1.tsv")
        assert done == ROWS[: len(done)]
        assert write(tmp_path, ROWS[len(done) :]).read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        "",
        "7\t3\t3\t0.4159",
        "7\t3\t3\t0.4159023482\t990\t1000\t1\t110012\t0",
        "7\t3\t3\t0.4152\t0\t-1\t0.0\t480\t1000",  # a torn line that was continued
        "7\t3\tx\t0.41\t990\t1000\t1\t1100",
        "7\t3\t9\t0.41\t990\t1000\t1\t1100",  # correct is not that of the label and the prediction
        "7\t3\t3\t0.41\t990\t1000\t0\t1100",
        "07\t3\t3\t0.41\t990\t1000\t1\t1100",
        HEADER.strip(),
    ],
)
def test_what_is_no_row(line):
    assert parsed(line) is None


def test_shards_together_are_the_whole(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "one", ROWS)
    write(tmp_path / "two", ROWS[::2], "1of2")
    write(tmp_path / "two", ROWS[1::2], "2of2")
    ids = [row.id for row in ROWS]
    assert read_all(tmp_path / "two") == {row.id: row for row in ROWS}
    assert merge(tmp_path / "one", ids) == merge(tmp_path / "two", ids) == sorted(ROWS)
    assert (tmp_path / "one" / rows.ALL).read_bytes() == (tmp_path / "two" / rows.ALL).read_bytes()


def test_one_writer_for_each_shard(tmp_path, monkeypatch):
    monkeypatch.setattr("dp.certification.rows.PATIENCE", 0.0)
    with Writer(tmp_path, "1of2"), Writer(tmp_path, "2of2"), pytest.raises(OSError, match="for one run at a time"):
        Writer(tmp_path, "1of2")


def test_certified_accuracy_counts_right_images_with_the_radius():
    """One of the three images is right, with radius .416."""
    one = certified(ROWS, 0.4)
    assert (one["right"], round(one["accuracy"], 1)) == (1, 33.3)
    assert one["low"] < one["accuracy"] < one["high"]
    assert certified(ROWS, 0.4159023482)["right"] == 1
    assert certified(ROWS, 0.5)["right"] == 0
    found = figures(ROWS)
    assert [line["right"] for line in found["certified"]] == [1, 1, 0, 0, 0]
    assert (found["abstained"], found["mean_radius"], found["evaluations"]) == (1, 0.4159023482, 3300)
    assert curve("a", ROWS, 0.6) == ("a", (0.4159023482,), 3, 0.6)
