"""The cells of the paper's Tables 1 to 8 on the embedded benchmarks, digits and canvas.

results/published/cells.csv names the command of each cell, and several cells may share one. Every run is archived in
results/measured/ when it ends, so that the same command goes on where it stopped. The cheapest run comes first; its
cost is in million network evaluations of one image. `--only` limits the runs of this start, and `--list` shows which
are missing. `dp tables` writes the tables from the archived runs.
"""

import shlex
import sys

import worklist
from cells import RESULTS
from rich.console import Console
from worklist import Run

from dp.evaluation.work import costs, total
from dp.output.published import PUBLISHED, read_csv
from dp.runs.build import build
from dp.runs.cells import find
from dp.runs.compose import composed
from dp.runs.errors import command

LONG = 5.0  # million evaluations, from which on each seed of a run is archived when it ends
console = Console(width=150, highlight=False)


def missing() -> list[tuple[str, ...]]:
    """The overrides of the runs that fill cells on the embedded benchmarks and are not archived, each once."""
    cells = [cell for cell in read_csv(PUBLISHED / "cells.csv") if cell["stand_in"] and cell["command"]]
    by_command = {cell["command"]: cell for cell in cells}
    measured = [RESULTS / "measured"]
    absent = (c for c, cell in by_command.items() if find(c, cell["folder"], cell["note"], measured).missing)
    return [tuple(shlex.split(words)) for words in absent]


def million(given: tuple[str, ...]) -> float:
    """The network evaluations of a run, in millions, if no image is broken early."""
    evaluation = build(composed(*given))
    return total(evaluation.plan(), costs(evaluation), evaluation.lanes) / 1e6


def todo() -> list[Run]:
    """The missing runs, the cheapest first."""
    priced = [(million(given), given) for given in missing()]
    return [Run(" ".join(given), given, cost, cost > LONG) for cost, given in sorted(priced)]


def main() -> int:
    """The command. Returns 0 when the runs are archived."""
    if worklist.started(__doc__, todo, console) is None:
        return 0
    console.print("dp tables writes the tables")
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
