"""The runs that fill the cells of the paper's tables are found by their key: whole, by seeds, smaller, or begun."""

import functools
import json
import shlex
from pathlib import Path

import pytest
from safetensors.torch import save_file

from dp.output import record
from dp.output.archived import arrays_of
from dp.output.published import PUBLISHED, all_rows, read_csv
from dp.runs import cells
from dp.runs.keys import run_key
from tests.helpers.compose import composed
from tests.helpers.rows import whole_row, whole_summary

COMMAND = "+experiment=digits/table1 hydra.mode=RUN purifier=diffpure protocol.votes=2"
CELL = (COMMAND, "digits-diffpure-pgd_eot-linf", "")
LINES = read_csv(PUBLISHED / "cells.csv")


@functools.cache
def key(*more: str) -> str:
    return run_key(composed(*shlex.split(COMMAND), *more))


def archived(folder: Path, name: str, seeds: tuple[int, ...], wrong: int = 0) -> None:
    """A run of two images; of the defended ones that are attacked `wrong` samples are wrong."""
    (folder / name).mkdir(parents=True)
    summary = whole_summary()
    summary["config"]["protocol"] |= {"votes": 2, "ties": "softmax"}
    record.write_summary(folder / name, summary | {"per_seed": {str(seed): {} for seed in seeds}})
    rows = [whole_row(arm, s, i) for arm in ("defended", "undefended", "null") for s in seeds for i in (0, 1)]
    for row in rows:
        row["adv"] = [2] * wrong + [1] * (2 - wrong)
    save_file(arrays_of(rows), folder / name / "verdicts.safetensors")


def test_without_a_run_it_says_so_and_composes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "composed", lambda *_: pytest.fail("composed"))
    assert cells.find(*CELL, [tmp_path, tmp_path / "none"]) == (None, "not run")
    (tmp_path / "digits-hetero-pgd_eot-linf-0123456789").mkdir()
    assert cells.find(*CELL, [tmp_path]).missing == "not run"
    assert cells.find("", "", "no weights", [tmp_path]) == (None, "no weights")


def test_runs_of_single_seeds_are_joined(tmp_path):
    """The first image's samples: none, one and both wrong in the three seeds, so half of the samples are right."""
    for seed, wrong in ((2024, 0), (2025, 1)):
        archived(tmp_path, key(f"protocol.seeds=[{seed}]"), (seed,), wrong)
    found = cells.find(*CELL, [tmp_path])
    assert found.missing == "only 2 of 3 seeds"
    assert found.summary is not None
    assert found.summary["robust"]["average"]["value"] == 75
    archived(tmp_path, key("protocol.seeds=[2026]"), (2026,), 2)
    found = cells.find(*CELL, [tmp_path])
    assert found.missing == ""
    assert found.summary is not None
    assert found.summary["robust"]["average"]["value"] == 50
    assert found.summary["robust"]["average"]["seed_std"] == 50
    assert sorted(found.summary["per_seed"]) == ["2024", "2025", "2026"]
    archived(tmp_path / "other", key(), (2024, 2025, 2026))
    assert cells.find(*CELL, [tmp_path, tmp_path / "other"]).summary == record.read_summary(tmp_path / "other" / key())


def test_a_smaller_run_a_begun_one_and_a_damaged_one(tmp_path):
    for name in ("begun", "smaller", "least", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "begun" / key()).mkdir()
    rows = "".join(json.dumps(whole_row("defended", 2024, i)) + "\n" for i in range(3))
    (tmp_path / "begun" / key() / "rows-1of4-0.jsonl").write_text(rows[:-40] + "\n")
    (tmp_path / "begun" / key() / "rows-2of4-0.jsonl").write_text(rows.splitlines(keepends=True)[2])
    assert cells.find(*CELL, [tmp_path / "begun"]) == (None, "begun, 3 rows: the command goes on")
    archived(tmp_path / "smaller", key("protocol.images=128"), (2024, 2025, 2026))
    found = cells.find(*CELL, [tmp_path / "smaller"])
    assert found.summary is not None
    assert found.missing == "only 128 of 512 images"
    archived(tmp_path / "least", key("protocol.images=64", "protocol.seeds=[2025]"), (2025,))
    assert cells.find(*CELL, [tmp_path / "least"]).missing == "only 64 of 512 images and 1 of 3 seeds"
    (tmp_path / "damaged" / key()).mkdir()
    (tmp_path / "damaged" / key() / "summary.json").write_text("{")
    found = cells.find(*CELL, [tmp_path / "damaged"])
    assert found.summary is None
    assert found.missing.startswith("damaged: need ")


def test_every_published_line_has_a_cell_and_each_cell_a_line():
    of = ("table", "method", "setting", "attack")
    assert {tuple(cell[k] for k in of) for cell in LINES} == {tuple(row[k] for k in of) for row in all_rows()}
    stand_ins = {(line["table"], line["stand_in"]) for line in read_csv(PUBLISHED / "stand_ins.csv")}
    assert {(cell["table"], cell["stand_in"]) for cell in LINES if cell["stand_in"]} == stand_ins
    assert {table for table, _ in stand_ins} == set("12345678")
    assert all(bool(cell["command"]) == bool(cell["folder"]) for cell in LINES)
    assert all(cell["command"] or cell["note"] for cell in LINES)


SAMPLE = sorted({cell["command"]: cell["folder"] for cell in LINES if cell["command"]}.items())[:: len(LINES) // 8]


@pytest.mark.parametrize(("command", "folder"), SAMPLE, ids=[command for command, _ in SAMPLE])
def test_a_cells_folder_begins_as_the_key_of_its_command(command, folder):
    config = composed(*shlex.split(command))
    assert run_key(config).rpartition("-")[0] == folder
    assert config["protocol"]["seeds"] == [2024, 2025, 2026]
