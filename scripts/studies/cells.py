"""Runs of run.py that a table is made of: done when they are asked for, or read where they are finished."""

import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from archive import keep

import run
from dp.output import record, report
from dp.runs.workers import follow_parent
from dp.statistics import metrics

ROOT = Path(__file__).parents[2]


def finished(overrides: tuple[str, ...], workers: int | str = "auto") -> tuple[dict, Path]:
    """The summary and the folder of the run with these overrides, which is done now if it was not, or was by other
    code, or without the audit that they ask for; its summary and verdicts are kept.
    """
    config = run.composed(*overrides, f"workers={workers}")
    folder = ROOT / "results" / "runs" / run.run_key(config)
    begun, summary = folder / "start.json", record.read_summary(folder)
    stale = begun.exists() and json.loads(begun.read_text())["code"] != record.code_hash()
    if summary is None or stale or (config["audit"] is True and not summary["audited"]):
        summary = run.judge(config | {"overwrite": stale}, folder.name, folder)
        assert summary is not None, "one shard does it all"
    keep(folder)
    return summary, folder


def side_by_side(function: Callable, asked: Mapping[str, tuple], at_once: int) -> Iterator[tuple[str, Any]]:
    """(name, function(*arguments)) of all that is asked, `at_once` processes of one thread each, in the order in which
    they end; they begin in the order asked. What one of them prints through run.py begins with its name.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, context, _begin) as pool:
        try:
            todo = {pool.submit(_named, name, function, arguments): name for name, arguments in asked.items()}
            for done in as_completed(todo):
                yield todo[done], done.result()
        except BrokenProcessPool:
            raise OSError(
                "a process died, perhaps out of memory: what is judged is saved, the same command goes on"
            ) from None
        finally:
            for child in multiprocessing.active_children():
                child.terminate()


class Named:
    """Standard output with a name before every line."""

    def __init__(self, name: str):
        self.name, self.begun = name, False

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            sys.stdout.write(line if self.begun else f"{self.name}: {line}")
            self.begun = not line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()


def _begin() -> None:
    follow_parent()
    torch.set_num_threads(1)


def _named(name: str, function: Callable, arguments: tuple) -> Any:
    run.console.file = Named(name)  # pyright: ignore[reportAttributeAccessIssue]
    return function(*arguments)


def scores(summary: dict, folder: Path) -> pd.DataFrame:
    """How right each image is by the protocol's own rule: a line per image, a column per seed."""
    rule, robust, _ = report.headline(summary)
    return verdicts(folder, "seen" if robust == "seen" else "adv", rule)


def verdicts(folder: Path, side: str, rule: str) -> pd.DataFrame:
    """How right each image of the defended arm is by `rule` over the draws of `side`: a line per image, a column per
    seed.
    """
    rows = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    lines = [(r["id"], r["seed"], metrics.score(r, side, rule)) for r in rows if r["arm"] == "defended"]
    return pd.DataFrame(lines, columns=["id", "seed", "score"]).pivot_table(index="id", columns="seed", values="score")


def markdown(title: str, columns: list[str], lines: list[list[str]]) -> str:
    """A titled GitHub table."""
    rows = ["| " + " | ".join(cells) + " |" for cells in [columns, ["---"] * len(columns), *lines]]
    return f"## {title}\n\n" + "\n".join(rows) + "\n"
