"""Studies write new files unless told otherwise, and refuse numbers of replicates that mean nothing."""

import importlib
import subprocess
import sys
from pathlib import Path

import claim_report
import interval_coverage
import outputs
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "results" / "tables" / "coverage.md"


@pytest.fixture
def new(tmp_path, monkeypatch):
    """The folder of new files."""
    monkeypatch.setattr(outputs, "NEW", tmp_path / "new")
    return tmp_path / "new"


@pytest.fixture
def small(monkeypatch):
    """A study of seconds."""
    monkeypatch.setattr(interval_coverage, "cases", lambda: [("single", "single", 1, 1)])
    for name, value in (("SPREADS", (2.0,)), ("FEW", (16,)), ("TRUTHS", (0.5, 0.98))):
        monkeypatch.setattr(interval_coverage, name, value)


def study(monkeypatch, *given: str) -> int:
    monkeypatch.setattr(sys, "argv", ["interval_coverage.py", *given])
    return interval_coverage.main()


@pytest.mark.parametrize("count", ["-1", "0", "99", "1e3", "many"])
@pytest.mark.parametrize("write", [True, False])
def test_few_replicates_are_refused(new, monkeypatch, capsys, count, write):
    before = COMMITTED.read_bytes()
    with pytest.raises(SystemExit) as ended:
        study(monkeypatch, f"--replicates={count}", *(["--write"] if write else []))
    assert ended.value.code == 2
    assert f"need a whole number of at least 100, got {count}" in capsys.readouterr().err
    assert COMMITTED.read_bytes() == before
    assert not new.exists()


def test_the_command_that_overwrote_a_table():
    before = COMMITTED.read_bytes()
    command = [sys.executable, "scripts/studies/interval_coverage.py", "--replicates", "-1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert COMMITTED.read_bytes() == before


def test_a_study_writes_a_new_file_each_time(new, small, monkeypatch, capsys):
    before = COMMITTED.read_bytes()
    for n in (1, 2):
        assert study(monkeypatch, "--replicates=100") == 0
        assert capsys.readouterr().out.endswith(f"{new / f'coverage-{n}.md'}\n")
    assert sorted(path.name for path in new.iterdir()) == ["coverage-1.md", "coverage-2.md"]
    assert "percent of 100 synthetic replicates" in (new / "coverage-1.md").read_text()
    assert COMMITTED.read_bytes() == before


def test_write_overwrites(new, small, tmp_path, monkeypatch):
    table = tmp_path / "tables" / "coverage.md"
    monkeypatch.setattr(interval_coverage, "TABLE", table)
    assert study(monkeypatch, "--replicates=100", "--write") == 0
    first = table.read_text()
    assert study(monkeypatch, "--replicates=104", "--write") == 0
    assert table.read_text() != first
    assert not new.exists()


WRITING = sorted(
    path.stem for path in (ROOT / "scripts" / "studies").glob("*.py") if "outputs.target(" in path.read_text()
)


def test_there_are_studies_that_write():
    assert {"convergence", "claim", "planted_faults", "sweeps"} < set(WRITING)


@pytest.mark.parametrize("name", WRITING)
def test_every_study_that_writes_has_the_switch(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main()
    assert ended.value.code == 0
    assert "--write" in capsys.readouterr().out


@pytest.mark.parametrize("count", ["0", "-3", "x"])
def test_no_images_are_refused(monkeypatch, capsys, count):
    monkeypatch.setattr(sys, "argv", ["adjoint", f"--images={count}"])
    with pytest.raises(SystemExit):
        importlib.import_module("adjoint").main()
    assert f"need a whole number of at least 1, got {count}" in capsys.readouterr().err


def test_the_main_studys_report_goes_where_it_is_told(tmp_path):
    """From the committed table, with no contrasts."""
    table = pd.read_csv(claim_report.DATA).rename(columns={"defence": "defense"})
    cells = table.assign(warnings=[[] for _ in table.index]).to_dict("records")
    text, data, picture = (tmp_path / name for name in ("a.md", "b.csv", "c.png"))
    claim_report.write(text, data, cells, [], [], {}, 128, 3)
    claim_report.draw(picture, cells, [])
    assert len(pd.read_csv(data)) == len(cells) > 1
    assert "| hetero" in text.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").rglob("*.py")), ids=lambda path: path.name)
def test_a_script_with_a_command_starts_it(path):
    """Each script that has a `main` ends with the lines that call it."""
    text = path.read_text()
    if "\ndef main(" in text:
        assert text.rstrip().splitlines()[-2] == 'if __name__ == "__main__":'
