"""The workspace at W&B: its specification, without a network, names what a run reports."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dp.commands import dashboard
from dp.output.to_wandb import curve_lines
from dp.output.tracked import figures_of
from tests.helpers.rows import whole_summary

FILE = Path(__file__).parents[2] / dashboard.FILE
POINT: Any = {"iterations": [0], "images": [1], "loss": [1.0], "gradient_norm": [1.0], "right": [1.0]}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict:
    pytest.importorskip("wandb_workspaces")
    out = tmp_path_factory.mktemp("dashboard") / "new" / "dashboard.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda *given: pytest.fail("the specification asks a network"))
        assert dashboard.main(["--out", str(out)]) == 0
    return json.loads(out.read_text())


def sections(spec: dict) -> dict[str, list[dict]]:
    held = spec["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in held}


def names(value: Any) -> Iterator[str]:
    """Every text in plain data."""
    if isinstance(value, str):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from names(child)


def test_the_file_in_the_repository_is_what_the_command_writes(written):
    assert json.loads(FILE.read_text()) == written


def test_there_are_panels_of_every_table_and_of_figure_7():
    held = sections(json.loads(FILE.read_text()))
    for number in range(1, 9):
        (panels,) = [panels for name, panels in held.items() if name.startswith(f"Table {number}: ")]
        metrics = {metric for panel in panels for metric in panel["config"]["metrics"]}
        assert {f"table{number}/{name}" for name in ("standard", "robust", "null")} <= metrics
    (panels,) = [panels for name, panels in held.items() if name.startswith("Fig. 7")]
    text = " ".join(names(panels))
    assert all(f"config:purifier.value.{name}" in text for name in ("tau", "t_l", "t_s"))


def test_every_name_is_one_that_a_run_reports(monkeypatch):
    """A misspelled one would be an empty panel."""
    summary = whole_summary()
    for side in ("standard", "robust", "null"):
        summary[side] |= {rule: summary[side]["single"] for rule in ("average", "worst")}
    known = set(figures_of(summary, None))
    for number in range(1, 9):
        rows = [{"table": str(number), "standard": "90.0", "robust": "50.0"}]
        monkeypatch.setattr("dp.output.tracked.published_rows", lambda config, rows=rows: rows)
        known |= set(figures_of(summary, f"table{number}/hetero"))
    known |= set(curve_lines(dict.fromkeys(dashboard.ARMS, POINT))[0])
    told = {name.removeprefix("summary:") for name in names(sections(json.loads(FILE.read_text())))}
    asked = {
        name
        for name in told
        if "/" in name
        and " " not in name
        and name.split("/")[0].rstrip("12345678") in ("table", "robust", "standard", "curve")
    }
    assert len(asked) > 40
    assert asked <= known, asked - known
