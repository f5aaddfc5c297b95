"""The table of a sweep: a line per cell, noted by whatever process ran it, drawn when the sweep has ended."""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dp.output.console import console

NOTES = "DP_SWEEP"  # environment variable: the file in which the cells of this sweep are noted


def begin_sweep() -> Path:
    """The file for the notes of this process's sweep, made known to all processes that it starts."""
    notes = Path(f"results/.sweep-{os.getpid()}.jsonl")
    os.environ[NOTES] = str(notes)
    return notes


def note_cell(overrides: Sequence[str], folder: Path | None, summary: dict | None, error: str | None) -> None:
    """A line for the sweep's table."""
    words = " ".join(o for o in overrides if not o.startswith("+experiment"))
    line = {"overrides": words, "folder": str(folder), "summary": summary, "error": error}
    with Path(os.environ[NOTES]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def finish_sweep(notes: Path) -> int:
    """The table of a sweep, printed and written to results/sweeps/; how many cells failed."""
    if not notes.exists():
        return 0
    from dp.output import sweep_table  # here: it imports pandas, which --help does not need

    runs = [json.loads(line) for line in notes.read_text().splitlines()]
    notes.unlink()
    failed = sum(run["summary"] is None for run in runs)
    path = Path("results/sweeps") / f"{hashlib.sha256(json.dumps(sys.argv[1:]).encode()).hexdigest()[:10]}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_table.sweep_frame(runs).to_csv(path, index=False, float_format="%.2f")
    console.print(sweep_table.sweep_table(runs, f"{len(runs)} cells, {failed} failed"))
    console.print(f"sweep: {path}")
    return failed
