"""dp status: how far runs are. Of a run it says more; a folder of runs is listed.

done: rows that are saved. to go: at the speed so far. by: the machines that have worked on it.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Column, Table

from dp.commands.options import wide_console
from dp.output.report import audit_word, clock
from dp.output.row_table import count_of
from dp.output.status import State, Status, is_run, status_of
from dp.runs.errors import DONE, command

RUNS, MEASURED = Path("results/runs"), Path("results/measured")


def statuses(folders: Sequence[Path]) -> list[Status]:
    """The status of every run: of the folders that are runs, and of the runs in the others. Raises ValueError for a
    folder that does not exist or holds no run.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"need the folder of a run or of runs, got {folder}, which is no folder")
        inside = [folder] if is_run(folder) else [path for path in sorted(folder.iterdir()) if path.is_dir()]
        runs = [status_of(path) for path in inside if is_run(path)]
        if not runs:
            raise ValueError(f"need the folder of a run or of runs, got {folder}, which holds none")
        found += runs
    return found


def table(found: Sequence[Status], now: float) -> Table:
    """One line for each run, those that are not finished first. `now`: seconds since 1970."""
    columns = ("state", "done", "to go", "by", "last written", "robust %", "audit")
    result = Table(Column("run", overflow="fold"), *columns, box=box.SIMPLE_HEAD)
    for one in sorted(found, key=lambda one: (one.state == State.FINISHED, one.key)):
        result.add_row(*_cells(one, now))
    return result


def _cells(one: Status, now: float) -> tuple[str, ...]:
    done = f"{one.done} of {one.rows}, {100 * one.done / one.rows:.0f} %" if one.rows else "-"
    left = "-" if one.state in (State.FINISHED, State.DAMAGED) else "not known yet"
    return (
        one.key,
        one.state.value,
        done,
        clock(one.seconds_left) if one.seconds_left else left,
        ", ".join(one.hosts) or "-",
        f"{clock(max(0.0, now - one.newest))} ago" if one.newest else "-",
        "-" if one.robust is None else f"{one.robust:.1f}",
        "-" if one.state == State.DAMAGED else audit_word(one.audited),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if every folder is shown, 2 after a user's error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help=f"runs, or folders of runs (default: {RUNS}, {MEASURED})")
    args = parser.parse_args(argv)
    folders = args.folders or [folder for folder in (RUNS, MEASURED) if folder.is_dir()]

    def show() -> int:
        if not folders:
            raise ValueError(f"need a folder of runs, got none, and there is no {RUNS}")
        found, console = statuses(folders), wide_console()
        console.print(table(found, time.time()))
        for one in found:
            if one.attacked:
                console.print(f"{one.key}: {one.attacked} units are under attack, with a saved state")
            if one.problem:
                console.print(f"{one.key}: {one.problem}")
        counts = {state: sum(one.state == state for one in found) for state in State}
        console.print(
            f"{count_of(len(found), 'run')}: " + ", ".join(f"{n} {state.value}" for state, n in counts.items() if n)
        )
        return DONE

    return command(show)
