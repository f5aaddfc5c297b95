"""The search by Optuna: on images of no row, for the mean of standard and robust accuracy."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from dp.commands.run import main
from dp.datasets import digits, digits_train, digits_tuning
from dp.runs import errors
from tests.helpers.compose import TINY

GIVEN = [*TINY, "protocol.seeds=[5]", "audit=false", "workers=1"]


def test_two_trials_on_images_of_no_row(tmp_path, monkeypatch, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", "+experiment=digits/tune", "hydra.sweeper.n_trials=2", *GIVEN])
    assert main() == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("images to choose values by") == 2
    found = [json.loads(path.read_text()) for path in Path("results/runs").glob("*/summary.json")]
    means = {
        summary["config"]["purifier"]["tau"]: (
            summary["standard"]["single"]["value"] + summary["robust"]["single"]["value"]
        )
        / 2
        for summary in found
    }
    assert len(means) == 2
    best = yaml.safe_load(Path("results/runs/optimization_results.yaml").read_text())
    assert best["best_value"] == max(means.values()) == means[best["best_params"]["purifier.tau"]]
    rows = [json.loads(line) for path in Path("results/runs").glob("*/images.jsonl") for line in path.open()]
    assert {row["id"] for row in rows} == set(digits_tuning(4).ids.tolist())
    assert main() == 0  # the same command again finds every trial
    assert capsys.readouterr().out.count("already finished") == 2


def test_no_row_uses_the_images():
    tuning = set(digits_tuning(1285).ids.tolist())
    assert tuning == set(digits_train().ids.tolist())
    assert not tuning & set(digits(512).ids.tolist())
    with pytest.raises(ValueError, match=r"1 <= images <= 1285"):
        digits_tuning(1286)


def test_without_the_extra_the_error_names_it(monkeypatch):
    from hydra.errors import MissingConfigException

    missing = MissingConfigException("no", "hydra/sweeper/optuna", ["basic"])
    assert "pip install 'dp-purification[optuna]'" in errors.sentence(missing)
