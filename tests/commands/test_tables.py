"""Archived runs and the tables made of them, from summaries and rows made by hand."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from dp.commands import archive, tables
from dp.output import record
from tests.helpers.rows import whole_row, whole_summary

RULES = ("single", "vote")
ROOT = Path(__file__).parents[2]


def row(arm: str, seed: int, i: int, **more) -> dict:
    more |= {} if arm == "null" else {"clean": [i, 1]}
    return {**whole_row(arm, seed, i), "label": i % 10, "adv": [2, 3], **more}


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A finished run of two images and two seeds, in results/runs/ of an empty working folder."""
    monkeypatch.chdir(tmp_path)
    folder = Path("results/runs/digits-diffpure-x")
    folder.mkdir(parents=True)
    record.write_summary(folder, whole_summary())
    rows = [row("defended", s, i, seen=[7], lost_at=None if i == 9 else s) for s in (1, 2) for i in (9, 4)]
    rows += [row(arm, s, i) for arm in ("null", "undefended") for s in (1, 2) for i in (9, 4)]
    (folder / record.IMAGES).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_a_run_is_archived_with_its_predictions(run, capsys):
    assert archive.main([str(run)]) == 0
    assert capsys.readouterr().out == "results/measured/digits-diffpure-x\n"
    copy = Path("results/measured/digits-diffpure-x")
    assert (copy / "summary.json").read_bytes() == (run / "summary.json").read_bytes()
    arrays = load_file(copy / "verdicts.safetensors")
    assert arrays["ids"].tolist() == [4, 9]
    assert arrays["labels"].tolist() == [4, 9]
    assert arrays["seeds"].tolist() == [1, 2]
    assert arrays["defended.clean"].tolist() == [[[4, 1], [9, 1]]] * 2
    assert arrays["defended.adv"].dtype == torch.int16
    assert arrays["defended.lost_at"].tolist() == [[1, -1], [2, -1]]
    assert arrays["null.adv"].shape == (2, 2, 2)
    assert "null.clean" not in arrays


def test_what_cannot_be_archived_is_said(run, capsys):
    (run / "summary.json").unlink()
    assert archive.main([str(run)]) == 2
    assert "need a finished run with summary.json" in capsys.readouterr().err
    (run / "summary.json").write_text("{}")
    assert archive.main([str(run)]) == 2
    assert f"need {run}/summary.json of format {record.FORMAT}, got 1" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["a row less", "a torn row", "no file", "unequal samples"])
def test_a_damaged_run_is_not_archived_over_a_good_copy(run, capsys, fault):
    assert archive.main([str(run)]) == 0
    copy = Path("results/measured/digits-diffpure-x")
    good = {path.name: path.read_bytes() for path in copy.iterdir()}
    path = run / record.IMAGES
    first, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(others))
    if fault == "a torn row":
        path.write_bytes(first[:20] + b"\n" + b"".join(others))
    if fault == "unequal samples":
        path.write_bytes(first.replace(b'"adv": [2, 3]', b'"adv": [2]') + b"".join(others))
    if fault == "no file":
        path.unlink()
    capsys.readouterr()
    assert archive.main([str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    what = {
        "a row less": "got 3 rows of defended instead of 2 images x 2 seeds",
        "a torn row": "got 1 damaged lines",
        "no file": "got no such file",
        "unequal samples": "got unequal numbers of adv samples in the rows of defended",
    }[fault]
    assert what in line
    assert line.endswith(f": delete {run / record.SUMMARY} and start the run again")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == good


def test_tables_name_a_bad_file(run, capsys):
    archive.main([str(run)])
    path = Path("results/measured/digits-diffpure-x/summary.json")
    path.write_bytes(path.read_bytes()[:-40])
    capsys.readouterr()
    assert tables.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: need {path} as it was written, got a file that is torn or no JSON: ")
    assert not Path("results/tables").exists()


def test_tables_have_a_line_per_rule(run, capsys):
    archive.main([str(run)])
    assert tables.main([]) == 0
    capsys.readouterr()
    lines = Path("results/tables/measured.csv").read_text().splitlines()
    assert len(lines) == 1 + len(RULES)
    frame = tables.measured()
    assert frame["rule"].tolist() == ["single sample", "vote of 5"]
    assert frame["robust"].tolist() == [60.0, 61.0]
    assert frame["standard 95 %"].tolist() == ["97.0-101.0", "98.0-102.0"]
    assert frame["settings"].tolist() == ["t=0.1 steps=5"] * 2
    assert set(frame["gradient"]) == {"exact"}
    assert (set(frame["NFE"]), set(frame["time"]), set(frame["seeds"])) == ({8}, {"1 min 15 s"}, {2})
    text = Path("results/tables/measured.md").read_text()
    assert text.count("\n| digits |") == len(RULES)
    published = Path("results/tables/published.md").read_text()
    assert "59.38±1.25" in published  # Table 1, as the paper prints it


def test_a_protocol_that_decides_in_loop_has_one_more_line(run):
    record.write_summary(run, whole_summary(in_loop=True))
    archive.main([str(run)])
    frame = tables.measured()
    assert sorted(frame["rule"]) == ["single sample", "single sample, in-loop", "vote of 5"]
    assert frame["robust"].tolist().count(50.0) == 1


def test_the_papers_tables_have_the_same_bytes_twice_and_name_what_is_missing(run, capsys):
    archive.main([str(run)])
    assert tables.main(["--out", "once"]) == tables.main(["--out", "twice", "--runs", "results/runs"]) == 0
    names = {f"table{n}{end}" for n in range(1, 9) for end in (".md", ".tex", ".csv")}
    assert names <= {path.name for path in Path("once").iterdir()}
    for path in Path("once").iterdir():
        assert path.read_bytes() == (Path("twice") / path.name).read_bytes()
    text = Path("once/table1.md").read_text()
    assert "| Ours | pgd_eot | cifar10 | not run | `dp run +experiment=table1/hetero` |" in text
    assert "| Ours | autoattack | 93.16±0.21 | 80.45±1.54 † |" in text
    assert "| diffpure | wrn_28_10 | 8/255 |" in text.partition("## Measured by others")[2]
    assert "no public weights are known to us" in Path("once/table8.md").read_text()
    assert "table1.md: 0 runs beside 20 published lines; " in capsys.readouterr().out


def test_own_runs_are_in_the_measured_table_too(run, capsys):
    """Without an archived run."""
    assert tables.main(["--runs", "results/runs"]) == 0
    (key,) = set(pd.read_csv("results/tables/measured.csv")["key"])
    assert key == run.name
    capsys.readouterr()
    assert tables.main(["--runs", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: need folders of runs for --runs, got nowhere")


def test_the_committed_tables_come_from_the_committed_runs(tmp_path):
    tables.write_paper_tables(tmp_path, [ROOT / "results" / "measured"])
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ROOT / "results" / "tables" / path.name).read_bytes(), path.name


def test_without_runs_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert tables.main([]) == 2
    assert "dp archive results/runs/<key>" in capsys.readouterr().err
