"""dp sweep: tables and figures of sweeps that no shell waits for any more, made from the folders of their runs.

A sweep whose command was stopped, or whose jobs go on after it, keeps its notes in results/sweeps/<name>/. This command
prints each such table, also while runs are under way, and writes it to results/sweeps/<name>.csv, with a figure beside
it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dp.runs.errors import DONE, command
from dp.runs.sweep import FOLDER, finish_sweep


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 2 if there is no such sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="*", type=Path, help="folders below results/sweeps; without any, all of them")
    args = parser.parse_args(argv)

    def show() -> int:
        for notes in args.sweeps or _all():
            if not notes.is_dir():
                raise ValueError(f"need the folder of a sweep below {FOLDER}, got {notes}, and there is no such folder")
            finish_sweep(notes.absolute(), ended=False)
        return DONE

    return command(show)


def _all() -> list[Path]:
    found = sorted(path for path in FOLDER.glob("*") if path.is_dir())
    if not found:
        raise ValueError(
            f"need a sweep with notes below {FOLDER}, got none: a sweep that has ended has its table there"
        )
    return found
