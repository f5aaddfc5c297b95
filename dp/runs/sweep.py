"""The table and the figure of a sweep. The process of each run writes a note; both are made of the notes and the runs'
folders.

So they need no process that has seen the whole sweep: after its end `dp sweep` makes them too.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dp.output.console import console

FOLDER = Path("results/sweeps")
NOTES = "DP_SWEEP"  # environment variable: the folder in which the runs of this sweep are noted
PRESETS = ("+experiment", "+slurm")  # words that say nothing about one run
SHARD = "shard="
UNFINISHED = "not finished: it is under way, or the same command goes on"


def begin_sweep() -> Path:
    """The folder for the notes of a sweep. Its name is given to all processes that this one starts.

    The first note makes the folder.
    """
    notes = FOLDER.absolute() / hashlib.sha256(json.dumps(sys.argv[1:]).encode()).hexdigest()[:10]
    os.environ[NOTES] = str(notes)
    return notes


def note_cell(
    number: int, overrides: Sequence[str], folder: Path | None, error: str | None = None, cost: dict | None = None
) -> None:
    """Note one run of a sweep: its number, overrides and folder, its error if it has ended with one, and what it would
    cost if only that was asked, see `cost_report.Cell`.

    Each run has a file of its own, because the runs may be on several machines.
    """
    from dp.output.record import write_atomic  # imported here: --help does not need torch

    words = [o for o in overrides if not o.startswith(PRESETS)]
    where = None if folder is None else str(folder)
    line = {"number": number, "overrides": words, "folder": where, "error": error, "cost": cost}
    notes = Path(os.environ[NOTES])
    notes.mkdir(parents=True, exist_ok=True)
    write_atomic(notes / f"{number}.json", json.dumps(line).encode())


def runs_of(notes: Path) -> list[dict]:
    """The runs of a sweep by their notes: overrides, folder, and the summary, the cost or an error. Shards are one run,
    but cost each their own.
    """
    from dp.output.record import read_summary

    lines = [json.loads(path.read_text()) for path in notes.glob("[0-9]*.json")]
    runs: dict[tuple, dict] = {}
    for line in sorted(lines, key=lambda line: line["number"]):
        cost = line.get("cost")  # older notes have none
        words = [word for word in line["overrides"] if cost or not word.startswith(SHARD)]
        run = {"overrides": words, "folder": line["folder"], "summary": None, "error": line["error"], "cost": cost}
        same = runs.setdefault((line["folder"], *words), run)
        same["error"] = same["error"] or line["error"]
    for run in runs.values():
        try:
            if run["error"] is None and run["folder"] is not None:
                run["summary"] = read_summary(Path(run["folder"]))
        except ValueError as error:
            run["error"] = str(error)
        if run["summary"] is run["error"] is run["cost"] is None:
            run["error"] = UNFINISHED
    return list(runs.values())


def finish_sweep(notes: Path, ended: bool) -> int:
    """Print the table of a sweep, write it to results/sweeps/ and draw its figure there; of a sweep that asks for
    costs, print theirs. Returns how many runs have neither a summary nor a cost.

    `ended`: no run is under way any more, so that the notes are not needed.
    """
    if not notes.is_dir():
        return 0
    from dp.output import sweep_figure, sweep_table  # imported here: --help needs neither matplotlib nor pandas

    runs = runs_of(notes)
    failed = sum(run["summary"] is run["cost"] is None for run in runs)
    if any(run["cost"] for run in runs):
        console.print(sweep_table.cost_table(runs))
        if ended:
            shutil.rmtree(notes)
        return failed
    path = notes.with_suffix(".csv")
    sweep_table.sweep_frame(runs).to_csv(path, index=False, float_format="%.2f")
    console.print(sweep_table.sweep_table(runs, f"{len(runs)} runs, {failed} failed"))
    console.print(f"sweep: {_near(path)}")
    for picture in sweep_figure.draw(runs, notes):
        console.print(f"figure: {_near(picture)}")
    if ended:
        shutil.rmtree(notes)
    return failed


def _near(path: Path) -> Path:
    """A path as seen from the working folder, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
