"""The runs of a study. A run that is not finished is run now; a finished one is read."""

import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from dp.audit import battery
from dp.commands import audit
from dp.commands.archive import archive
from dp.output import record, report
from dp.output.archived import arrays, read_rows
from dp.output.console import console
from dp.runs import compose
from dp.runs.keys import run_key
from dp.runs.pipeline import judged
from dp.runs.sources import sources_hash
from dp.runs.workers import follow_parent
from dp.statistics import metrics

RESULTS = Path(__file__).parents[2] / "results"


def finished(overrides: tuple[str, ...], workers: int | str = "auto") -> tuple[dict, Path]:
    """The summary and the archived folder of the run with these overrides.

    It is read from results/measured/ if it is there, with all of its rows and the audit that the overrides demand: its
    key holds the versions of what it ran. Otherwise it runs now, or goes on, and is archived.
    """
    setup = compose.setup(*overrides, f"workers={workers}")
    folder, copy = RESULTS / "runs" / run_key(setup.config), RESULTS / "measured" / run_key(setup.config)
    if (copy / record.SUMMARY).exists():
        summary = record.read_summary(copy)
        if summary and "defended.iterations" in arrays(copy) and (summary["audited"] or "audit=true" not in overrides):
            return summary, copy
    start = folder / record.START
    stale = start.exists() and record.read_start(folder)["code"] != sources_hash(setup.config)
    summary = judged(setup._replace(config=setup.config | {"overwrite": stale}), folder)
    assert summary is not None, "one shard does it all"
    if "audit=true" in overrides and not summary["audited"]:  # all rows were there, so that nothing was attacked
        summary = judged(setup, folder) or summary
    return summary, archive(folder, RESULTS / "measured")


def by_seed(overrides: tuple[str, ...], workers: int | str = "auto") -> tuple[dict, Path]:
    """`finished` for a run that takes too long for one cell: each seed is a run of its own, archived when it ends.

    A row does not depend on the other seeds of its run, so the rows of the whole run are those of its seeds. When it is
    archived, its seeds are no longer.
    """
    setup = compose.setup(*overrides, f"workers={workers}")
    folder = RESULTS / "runs" / run_key(setup.config)
    if (RESULTS / "measured" / folder.name / record.SUMMARY).exists():
        return finished(overrides, workers)
    seeds = setup.config["protocol"]["seeds"]
    parts = [finished((*overrides, f"protocol.seeds=[{seed}]"), workers) for seed in seeds]
    shutil.rmtree(folder, ignore_errors=True)
    _take_over(folder, setup.config, parts)
    whole = finished(overrides, workers)
    for _, part in parts:
        shutil.rmtree(part)
    return whole


def grown(overrides: tuple[str, ...], images: int, before: int, workers: int | str = "auto") -> tuple[dict, Path]:
    """`finished` for the first `images` of a run that takes too long for one cell. The rows of its first `before` ones
    are taken from the run that is archived for them, if there is one, which is then no longer archived.
    """
    asked = (*overrides, f"protocol.images={images}")
    setup, earlier = compose.setup(*asked, f"workers={workers}"), (*overrides, f"protocol.images={before or images}")
    folder, copy = RESULTS / "runs" / run_key(setup.config), RESULTS / "measured" / run_key(compose.composed(*earlier))
    summary = record.read_summary(copy) if before else None
    if summary is not None and not (folder / record.START).exists():
        _take_over(folder, setup.config, [(summary, copy)])
    made = finished(asked, workers)
    if summary is not None:
        shutil.rmtree(copy)
    return made


def _take_over(folder: Path, config: dict, parts: list[tuple[dict, Path]]) -> None:
    """Begin the run of a configuration in `folder` with the rows of archived runs, `parts`, which are a part of it."""
    record.begin(folder, config, sources_hash(config), overwrite=False)
    rows = [row for _, part in parts for row in read_rows(part)]
    for name, lines in (("rows", rows), ("timing", [{"seconds": summary["seconds"]} for summary, _ in parts])):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        record.write_atomic(folder / f"{name}-1of1-0.jsonl", text.encode())


def audited(overrides: tuple[str, ...], workers: int | str = "auto") -> tuple[dict, Path]:
    """`finished`, with the whole audit of its configuration, which is made now if the archived summary has none."""
    summary, copy = finished(overrides, workers)
    if not summary["audited"] or summary["audited"]["quick"]:
        setup = compose.setup(*overrides)
        audit.audited(setup, quick=False, images=None, console=console)
        path, code = audit.FOLDER / f"{run_key(setup.config)}.json", sources_hash(setup.config)
        summary = battery.attach(copy, battery.read(path, code))
        assert summary is not None, "it is archived"
    return summary, copy


def side_by_side(function: Callable, calls: Mapping[str, tuple], at_once: int) -> Iterator[tuple[str, Any]]:
    """Yields (name, function(*arguments)) for all named calls, in the order in which they end.

    They run in `at_once` processes of one thread each, and begin in the given order. Each line that a process prints to
    the console begins with the name of its call. Raises OSError if a process died.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, context, _begin) as pool:
        try:
            names = {pool.submit(_named, name, function, arguments): name for name, arguments in calls.items()}
            for future in as_completed(names):
                yield names[future], future.result()
        except BrokenProcessPool:
            raise OSError(
                "a process died, perhaps out of memory: finished rows are saved, and the same command goes on"
            ) from None
        finally:
            for child in multiprocessing.active_children():
                child.terminate()


class Named:
    """Standard output with a name before every line."""

    def __init__(self, name: str):
        self.name, self.begun = name, False

    def write(self, text: str) -> int:
        """Write text, with the name before every line."""
        for line in text.splitlines(keepends=True):
            sys.stdout.write(line if self.begun else f"{self.name}: {line}")
            self.begun = not line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        """Flush standard output."""
        sys.stdout.flush()


def _begin() -> None:
    follow_parent()
    torch.set_num_threads(1)


def _named(name: str, function: Callable, arguments: tuple) -> Any:
    console.file = Named(name)  # pyright: ignore[reportAttributeAccessIssue]
    return function(*arguments)


def scores(summary: dict, folder: Path) -> pd.DataFrame:
    """The score of each image by the protocol's own rule, with one line per image and one column per seed."""
    rule, robust, _ = report.headline(summary)
    return image_scores(folder, "seen" if robust == "seen" else "adv", rule)


def image_scores(folder: Path, side: str, rule: str) -> pd.DataFrame:
    """The score in [0,1] of each image of the defended condition of an archived run, by `rule`.

    The frame has one line per image and one column per seed. `side`: `clean`, `adv`, or `seen` for the in-loop samples.
    """
    rows = [row for row in read_rows(folder) if row["arm"] == "defended"]
    lines = [(r["id"], r["seed"], metrics.score(r, side, rule)) for r in rows]
    return pd.DataFrame(lines, columns=["id", "seed", "score"]).pivot_table(index="id", columns="seed", values="score")


def markdown(title: str, columns: list[str], lines: list[list[str]]) -> str:
    """A titled GitHub table."""
    rows = ["| " + " | ".join(cells) + " |" for cells in [columns, ["---"] * len(columns), *lines]]
    return f"## {title}\n\n" + "\n".join(rows) + "\n"
