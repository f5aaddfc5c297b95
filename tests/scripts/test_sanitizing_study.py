"""The study of sanitizing: its cells, and what it writes of some of them."""

import pandas as pd
import pytest
import sanitizing as study
from sanitizing import CELLS, RATES, SEEDS, SOURCES, TRIGGERS, Cell, draw, line, text

from dp.runs.sanitized import configured
from dp.statistics.intervals import wilson


def test_the_cells():
    assert len({*CELLS}) == len(TRIGGERS) * len(RATES) * len(SEEDS) * len(SOURCES) == 54
    job = configured(Cell(2, 0.05, "blended", "poisoned").words(tiny=False))
    assert (job.sanitizer.seed, job.poison.seed, job.poison.rate) == (2, 2, 0.05)
    assert job.trains_denoiser
    assert job.recipes["denoiser"]["steps"] == 700
    assert job.recipes["classifier"]["seed"] == 2


def share(value: float, n: int) -> dict:
    low, high = wilson(value / 100, n)
    return {"value": value, "low": 100 * low, "high": 100 * high, "n": n}


def summary(after: float, flagged: list[int]) -> dict:
    model = {"accuracy": share(99.0, 512), "success": share(after, 466)}
    labels = {"true_positive": share(75.0, 128), "false_positive": share(0.5, 1157)}
    counts = {"sure": 1, "suspicious": 2, "agreed": 1, "seconds": 61.0, "target": 0, "key": "k"}
    return {"models": {"poisoned": model, "sanitized": model}, "labels": labels, "flagged": flagged, **counts}


def test_the_table_has_means_over_seeds_and_says_what_is_missing():
    cells = [Cell(seed, 0.1, "patch", "clean") for seed in (0, 1)]
    lines = [line(cells[0], summary(0.0, [0]), False), line(cells[1], summary(4.0, [3]), False)]
    page = text(lines, len(CELLS))
    low, high = wilson(0.02, 466)
    assert "| patch | 0.1 | clean | 2 | 99.0" in page
    assert f"| 2.0 ({100 * low:.1f} to {100 * high:.1f}) | 75.0" in page
    assert "| 1 of 2 |" in page
    assert "52 of 54 cells are not measured yet." in page
    assert "    python scripts/sanitize.py dataset=digits poison=patch poison.rate=0.1 sanitizer.seed=0 " in page


def test_the_figure_of_some_cells(tmp_path):
    cells = [Cell(0, rate, "patch", source) for rate in RATES for source in SOURCES]
    draw(tmp_path / "all.png", [line(cell, summary(50.0, [0]), False) for cell in cells])
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")


def test_a_tiny_study_goes_on_and_writes_its_files(tmp_path, monkeypatch, capsys):
    """A cell in a first start, another in the second one. Nothing is archived."""
    for name in ("MEASURED", "NEW"):
        monkeypatch.setattr(study, name, tmp_path / name)
    monkeypatch.setattr(study.outputs, "NEW", tmp_path)
    monkeypatch.setattr(study, "CELLS", CELLS[:2])
    monkeypatch.setattr(study, "side_by_side", lambda f, calls, at_once: ((k, f(*v)) for k, v in calls.items()))
    monkeypatch.setattr("sys.argv", ["sanitizing", "--tiny", "--only", "1"])
    assert study.main() == 0
    assert "1 of 2 cells are not measured yet" in (tmp_path / "sanitizing-1.md").read_text()
    monkeypatch.setattr("sys.argv", ["sanitizing", "--tiny"])
    assert study.main() == 0
    assert "1 cells to run, 1 of them now" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "sanitizing-2.csv")["trained_on"].tolist() == ["clean", "poisoned"]
    assert (tmp_path / "sanitizing-2.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "MEASURED").exists()


def test_a_tiny_table_is_no_result(monkeypatch):
    monkeypatch.setattr("sys.argv", ["sanitizing", "--tiny", "--write"])
    with pytest.raises(ValueError, match="need --tiny without --write"):
        study.main()
