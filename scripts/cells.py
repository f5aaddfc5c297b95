"""Runs of run.py that a table is made of: done when they are asked for, or read where they are finished."""

import json
from pathlib import Path

import pandas as pd
from keep import keep

import run
from dp import metrics, record, report

ROOT = Path(__file__).parents[1]


def finished(overrides: tuple[str, ...]) -> tuple[dict, Path]:
    """The summary and the folder of the run with these overrides, which is done now if it was not, or was by other
    code, or without the audit that they ask for; its summary and verdicts are kept.
    """
    config = run.composed(*overrides)
    folder = ROOT / "results" / "runs" / run.run_key(config)
    begun, summary = folder / "start.json", record.read_summary(folder)
    lacks = summary is not None and config["audit"] is True and not summary["audited"]
    stale = begun.exists() and json.loads(begun.read_text())["code"] != record.code_hash()
    if summary is None or stale or lacks:
        summary = run.judge(config | {"overwrite": stale or lacks}, folder.name, folder)
        assert summary is not None, "one shard does it all"
        run.show(summary)
    keep(folder)
    return summary, folder


def scores(summary: dict, folder: Path) -> pd.DataFrame:
    """How right each image is by the protocol's own rule: a line per image, a column per seed."""
    rule, robust, _ = report.headline(summary)
    rows = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    side = "seen" if robust == "seen" else "adv"
    lines = [(r["id"], r["seed"], metrics.score(r, side, rule)) for r in rows if r["arm"] == "defended"]
    return pd.DataFrame(lines, columns=["id", "seed", "score"]).pivot_table(index="id", columns="seed", values="score")


def markdown(title: str, columns: list[str], lines: list[list[str]]) -> str:
    """A titled GitHub table."""
    rows = ["| " + " | ".join(cells) + " |" for cells in [columns, ["---"] * len(columns), *lines]]
    return f"## {title}\n\n" + "\n".join(rows) + "\n"
