"""Runs of run.py that a table is made of: done when they are asked for, or read where they are finished."""

import json
from pathlib import Path

from keep import keep

import run
from dp import record

ROOT = Path(__file__).parents[1]


def finished(overrides: tuple[str, ...]) -> tuple[dict, Path]:
    """The summary and the folder of the run with these overrides, which is done now if it was not, or was by other
    code; its summary and verdicts are kept.
    """
    config = run.composed(*overrides)
    folder = ROOT / "results" / "runs" / run.run_key(config)
    summary = folder / "summary.json"
    if not summary.exists() or json.loads(summary.read_text())["code"] != record.code_hash():
        again = {"overwrite": summary.exists()}  # one table, one code
        found = run.judge(config | again, folder.name, folder)
        assert found is not None, "one shard does it all"
        run.show(found)
    keep(folder)
    return json.loads(summary.read_text()), folder


def markdown(title: str, columns: list[str], lines: list[list[str]]) -> str:
    """A titled GitHub table."""
    rows = ["| " + " | ".join(cells) + " |" for cells in [columns, ["---"] * len(columns), *lines]]
    return f"## {title}\n\n" + "\n".join(rows) + "\n"
