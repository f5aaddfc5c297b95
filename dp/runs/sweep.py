"""The table of a sweep. The process of each run notes a line, and the table is printed when the sweep has ended."""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dp.output.console import console

FOLDER = Path("results/sweeps")
NOTES = "DP_SWEEP"  # environment variable: the file in which the runs of this sweep are noted


def begin_sweep() -> Path:
    """The file for the notes of a sweep. Its name is given to all processes that this one starts.

    The first note makes the file and its folder.
    """
    notes = FOLDER.absolute() / f".notes-{os.getpid()}.jsonl"
    os.environ[NOTES] = str(notes)
    return notes


def note_cell(overrides: Sequence[str], folder: Path | None, summary: dict | None, error: str | None) -> None:
    """Note one run of a sweep: its overrides, folder and summary, or its error."""
    words = [o for o in overrides if not o.startswith("+experiment")]
    line = {"overrides": words, "folder": str(folder), "summary": summary, "error": error}
    notes = Path(os.environ[NOTES])
    notes.parent.mkdir(parents=True, exist_ok=True)
    with notes.open("a") as file:
        file.write(json.dumps(line) + "\n")


def finish_sweep(notes: Path) -> int:
    """Print the table of a sweep and write it to results/sweeps/. Returns how many runs failed."""
    if not notes.exists():
        return 0
    from dp.output import sweep_table  # imported here: --help does not need pandas

    runs = [json.loads(line) for line in notes.read_text().splitlines()]
    notes.unlink()
    failed = sum(run["summary"] is None for run in runs)
    path = FOLDER / f"{hashlib.sha256(json.dumps(sys.argv[1:]).encode()).hexdigest()[:10]}.csv"
    sweep_table.sweep_frame(runs).to_csv(path, index=False, float_format="%.2f")
    console.print(sweep_table.sweep_table(runs, f"{len(runs)} runs, {failed} failed"))
    console.print(f"sweep: {path}")
    return failed
