"""The figures of docs/sanitizing.md: recomputed from the archived cells of the study."""

from pathlib import Path

import pandas as pd
import pytest

from dp.runs.sanitized import read_summary

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "sanitizing.md").read_text().split())


@pytest.fixture(scope="module")
def cells() -> pd.DataFrame:
    table = pd.read_csv(ROOT / "results" / "tables" / "sanitizing.csv")
    return table.set_index(["trigger", "rate", "seed", "trained_on"]).sort_index()


def test_the_first_seed_with_the_patch(cells):
    clean, poisoned = (cells.loc["patch", 0.1, 0, source] for source in ("clean", "poisoned"))
    said = [f"attack success {one['success before']:.1f} to {one['success after']:.1f} %" for one in (clean, poisoned)]
    summary = read_summary(ROOT / "results" / "measured" / "sanitized" / clean["run"])
    assert summary is not None
    restored, count = summary["labels"]["restored"], summary["labels"]["true_positive"]["n"]
    assert f"{said[0]}; all {count} poisoned images get their true label again" in PAGE
    assert restored["value"] == 100
    assert f"{said[1]}; no poisoned image is found" in PAGE
    assert poisoned["true positive"] == 0


def test_without_clean_data(cells):
    assert "With the patch it flags a wrong class." in PAGE
    assert not cells.loc["patch", 0.1, 0, "poisoned"]["found"]
    blended = cells.loc["blended", 0.1, 0, "poisoned"]
    found, success = f"{blended['true positive']:.0f} %", f"{blended['success after']:.0f} %"
    assert blended["found"]
    assert f"still finds only {found} of the poisoned images; the attack success stays {success}" in PAGE
