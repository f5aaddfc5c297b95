"""The table and the figure of a sweep are made of files alone: by its command, and by `dp sweep` when that is gone."""

import json
import sys
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from dp.commands.run import main
from dp.commands.sweep import main as sweep
from dp.output.sweep_table import cost_table
from dp.runs.sweep import note_cell
from tests.helpers.compose import TINY

GIVEN = [*TINY, "protocol.seeds=[5]", "attack=none", "purifier=none", "audit=false", "workers=1"]
GIVEN = [word for word in GIVEN if not word.startswith("attack.")]


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Exit code and output of `python run.py overrides...` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["run.py", *overrides])
        return main(), capsys.readouterr().out

    return run


def tables() -> list[pd.DataFrame]:
    return [pd.read_csv(path) for path in Path("results/sweeps").glob("*.csv")]


def test_shards_are_one_row_and_code_0(cli):
    code, out = cli("-m", *GIVEN, "shard=1/2,2/2")
    assert code == 0
    assert "1 runs, 0 failed" in out
    assert "figure" not in out  # of one run
    (table,) = tables()
    assert len(table) == 1
    assert "shard" not in table["overrides"][0]
    summary = json.loads((Path(table["folder"][0]) / "summary.json").read_text())
    assert table["standard_single"][0] == pytest.approx(summary["standard"]["single"]["value"], abs=0.01)
    code, out = cli(*GIVEN, "results=whole")
    whole, parts = (next(Path(f).glob("*/images.jsonl")).read_bytes() for f in ("whole", "results/runs"))
    assert whole == parts


def test_figure_7_on_digits_draws_its_curve_when_it_ends(cli):
    """The preset with two of its cells; one that fails is listed with its error, and a rerun does nothing twice."""
    given = [word for word in GIVEN if not word.startswith("purifier=")]
    words = ["-m", "+experiment=fig7/tau", "dataset=digits", "purifier.tau=0.5,0.8,1.5", *given]
    code, out = cli(*words)
    assert code == 2
    assert "3 runs, 1 failed" in out
    assert "purifier.tau=1.5 failed: need" in " ".join(out.split())
    stems = {path.stem for path in Path("results/sweeps").iterdir()}
    assert {path.suffix for path in Path("results/sweeps").iterdir()} == {".csv", ".svg", ".png"}
    for stem in stems:
        assert f"figure: results/sweeps/{stem}.svg" in out
    code, out = cli(*words)
    assert code == 2
    assert out.count("already finished, nothing to do") == 2


def test_a_missing_shard_is_said(cli):
    code, out = cli("-m", *GIVEN, "shard=1/2")
    assert code == 2
    assert "not finished: it is under way, or the same command goes on" in " ".join(out.split())


def test_the_table_of_a_sweep_whose_shell_is_gone(cli, monkeypatch, capsys):
    """As a job of a cluster leaves it: a note of a run that is finished, of one that is not, and of one that failed."""
    cli(*GIVEN)
    (folder,) = Path("results/runs").iterdir()
    monkeypatch.setenv("DP_SWEEP", str(Path("results/sweeps/abc").absolute()))
    note_cell(10, ["+slurm=h200", "purifier=a"], folder)
    note_cell(2, ["+slurm=h200", "purifier=b"], Path("results/runs/other"))
    note_cell(1, ["+slurm=h200", "purifier=c"], None, "unknown option purifier=c")
    capsys.readouterr()
    assert sweep([]) == 0
    out = capsys.readouterr().out
    assert "3 runs, 2 failed" in out
    assert "sweep: results/sweeps/abc.csv" in out
    table = pd.read_csv("results/sweeps/abc.csv")
    assert table["overrides"].tolist() == ["purifier=c", "purifier=b", "purifier=a"]
    assert table["error"].tolist()[0] == "unknown option purifier=c"
    assert table["error"].notna().tolist() == [True, True, False]
    assert table["standard_single"].notna().tolist() == [False, False, True]
    assert sweep(["results/sweeps/abc"]) == 0
    assert sweep(["results/sweeps/none"]) == 2


def test_the_costs_of_a_sweep_are_one_table(cli):
    """With counted FLOPs, which need no measurement: twice the images cost twice the time."""
    code, out = cli("-m", *GIVEN, "cost=h200", "protocol.images=4,8")
    assert code == 0
    table = out[out.index("cost of 2 runs") :]
    lines = [line.split() for line in table.splitlines() if line.strip().startswith("protocol.images=")]
    assert [line[0] for line in lines] == ["protocol.images=4", "protocol.images=8"]
    assert "one h200" in table
    assert "8 of them" in table
    assert not list(Path("results").rglob("*.json*"))


def test_a_cell_without_a_cost_says_why():
    few = {"one": "worker", "several": 2, "seconds": 90.0, "together": 50.0, "memory": 2e9}
    runs = [{"overrides": ["a=1"], "cost": few, "error": None}, {"overrides": ["a=2"], "cost": few, "error": None}]
    runs.append({"overrides": ["a=3"], "cost": None, "error": "unknown key a"})
    out = Console(width=90, record=True, file=StringIO())
    out.print(cost_table(runs))
    text = out.export_text()
    assert "3 min 00 s" in text  # of both together, by one worker
    assert "1 min 40 s" in text
    assert "failed: unknown key a" in text
