"""The study of certified accuracy: its cells, and what it writes of some of them."""

import certified as study
import pandas as pd
import pytest
from certified import CELLS, Cell, line, text

from dp.runs.certified import configured


def test_the_cells():
    by_sigma = {
        (cell.certificate, cell.sigma): (cell.n, cell.images)
        for cell in CELLS
        if (cell.n, cell.denoiser) == (1000, "digits")
    }
    assert [by_sigma["one_shot", sigma] for sigma in (0.25, 0.5, 0.75)] == [(1000, 512)] * 3
    assert by_sigma["none", 0.25] == (1000, 512)
    assert by_sigma["densepure", 0.5] == (1000, 64)
    assert Cell("one_shot", 0.5, 10_000, 64) in CELLS
    consistency = [cell for cell in CELLS if cell.denoiser == "digits_consistency"]
    assert [(cell.certificate, cell.sigma) for cell in consistency] == [("one_shot", s) for s in (0.25, 0.5, 0.75)]
    for cell in CELLS:
        job = configured(cell.words(tiny=False))
        assert ("digits_consistency" in str(job.config.get("denoiser"))) == (cell in consistency)
        one = job.smoothing
        assert (one.sigma, one.n, one.images, one.n0, one.alpha) == (cell.sigma, cell.n, cell.images, 100, 0.001)


def test_a_tiny_study_goes_on_and_writes_its_files(tmp_path, monkeypatch, capsys):
    """Two cells in a first start, a third in the second one. Nothing is archived."""
    for name in ("MEASURED", "NEW"):
        monkeypatch.setattr(study, name, tmp_path / name)
    monkeypatch.setattr(study.outputs, "NEW", tmp_path)
    monkeypatch.setattr(study, "CELLS", [CELLS[0], CELLS[6], CELLS[9]])
    monkeypatch.setattr(study, "side_by_side", lambda f, calls, at_once: ((k, f(*v)) for k, v in calls.items()))
    monkeypatch.setattr("sys.argv", ["certified", "--tiny", "--only", "2"])
    assert study.main() == 0
    assert "1 cells are not measured yet" in (tmp_path / "certified-1.md").read_text()
    monkeypatch.setattr("sys.argv", ["certified", "--tiny"])
    assert study.main() == 0
    assert "1 cells to run, 1 of them now" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "certified-2.csv")
    assert table["certificate"].tolist() == ["none", "one_shot", "densepure"]
    assert table["base"].tolist() == ["bare classifier", "consistency model", "DensePure"]
    assert (table["accuracy at 0"] >= table["accuracy at 1"]).all()
    assert (tmp_path / "certified-2.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "MEASURED").exists()


def test_a_tiny_table_is_no_result(monkeypatch):
    monkeypatch.setattr("sys.argv", ["certified", "--tiny", "--write"])
    with pytest.raises(ValueError, match="need --tiny without --write"):
        study.main()


def test_the_table_says_what_is_missing():
    at = {"radius": 0.25, "accuracy": 75.0, "low": 60.0, "high": 85.0}
    summary = {"sigma": 0.5, "n": 1000, "images": 512, "cap": 1.23, "certified": [at], "abstained": 3, "key": "k"}
    summary |= {"mean_radius": None, "evaluations": 563_200, "seconds": 61.0}
    page = text([line(CELLS[4], summary, tiny=False)], 8)
    assert "| one-shot | 0.5 | 1000 | 512 | 75.0 (60.0 to 85.0) | 1.230 | - | 3 | 1,100 | 1 min 01 s |" in page
    assert "7 cells are not measured yet." in page
    assert "    python scripts/certify.py dataset=digits certificate=one_shot certificate.sigma=0.5" in page
