"""docs/sanitizing.md: its figures from the archived cells of the study, and its example of a folder of one's own."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from dp.commands import sanitize
from dp.runs import sanitized
from dp.runs.sanitized import read_summary
from tests.docs import examples

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


SHORT = ("sanitizer.rounds.coarse=2", "sanitizer.rounds.count=1", "sanitizer.rounds.variance=small", "device=cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with the files of this page and of that about extending, copied as they are printed."""
    for name in ("extending", "sanitizing"):
        for _, content in examples.BLOCK.findall((ROOT / "docs" / f"{name}.md").read_text()):
            if named := examples.NAMED.match(content):
                (tmp_path / named[2]).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / named[2]).write_text(content)
    subprocess.run([sys.executable, "make_shapes.py"], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_folder_of_ones_own_is_sanitized_as_printed(folder, capsys):
    commands = [words for words in examples.commands((ROOT / "docs" / "sanitizing.md").read_text()) if words[0] == "dp"]
    assert [words[-1] for words in commands] == ["poison=patch", "poison=none"]
    assert sanitize.main([*commands[0][2:], *SHORT]) == 0
    (path,) = folder.glob("results/sanitized/shapes-patch-*/summary.json")
    summary = json.loads(path.read_text())
    assert (summary["images"], summary["models"]["poisoned"]["accuracy"]["n"]) == (80, 40)
    assert "are training images, too" not in capsys.readouterr().out
    nested = folder / "mine" / "training" / "shapes_classifier.yaml"
    sanitized._composed.cache_clear()
    nested.write_text("# A comment first.\n" + nested.read_text())
    assert sanitize.main([*commands[1][2:], *SHORT]) == 2
    error = capsys.readouterr().err
    assert "need training.data in the recipe shapes_classifier, got a yaml without it: make `# @package" in error
    assert error.count("\n") == 1


def test_without_clean_data_at_a_low_rate(cells):
    blended, patch = (cells.loc[trigger, 0.02, 0, "poisoned"] for trigger in ("blended", "patch"))
    said = (
        f"from {blended['success before']:.0f} to {blended['success after']:.1f} % with the blended trigger and from "
    )
    said += f"{patch['success before']:.1f} to {patch['success after']:.1f} % with the patch"
    assert said in PAGE
