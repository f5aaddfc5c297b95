"""The runs of a study that are not archived yet: `--list` shows them, and each start makes some of them."""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import outputs
from cells import RESULTS, by_seed, finished, side_by_side
from rich.console import Console

from dp.output import record, report
from dp.runs import compose
from dp.runs.keys import run_key
from dp.runs.machine import workers_of

RULE = "average"  # of fresh samples: the figure that is shown when a run ends


class Run(NamedTuple):
    """A run of a study. `cost`: relative to the study's others. `by_seed`: each seed is archived when it ends."""

    name: str
    given: tuple[str, ...]
    cost: float = 1.0
    by_seed: bool = False


def parser(description: str | None) -> argparse.ArgumentParser:
    """A study's parser, with --write, --only, --at-once and --list."""
    made = outputs.parser(description)
    made.add_argument("--only", type=int, default=None, metavar="N", help="at most N runs in this start")
    made.add_argument(
        "--at-once",
        type=outputs.at_least_one,
        default=1,
        metavar="N",
        help="runs side by side, which share the cores (1)",
    )
    made.add_argument("--list", action="store_true", help="show the runs that are not archived, and make none")
    return made


def archived(given: tuple[str, ...]) -> bool:
    """True if the run with these overrides is archived."""
    return (RESULTS / "measured" / run_key(compose.composed(*given)) / record.SUMMARY).exists()


def show(runs: Sequence[Run], console: Console) -> None:
    """Print what is missing, with the cost of each run."""
    for run in runs:
        console.print(f"{run.cost:5.1f} x cost: {run.name}")


def started(description: str | None, todo: Callable[[], Sequence[Run]], console: Console) -> argparse.Namespace | None:
    """Read a study's command, and make the runs that `todo` finds missing. Returns the arguments, or None after --list,
    which only shows the runs.
    """
    args = parser(description).parse_args()
    runs = todo()
    if args.list:
        show(runs, console)
        return None
    make(runs, args, console)
    return args


def make(runs: Sequence[Run], args: argparse.Namespace, console: Console) -> None:
    """Make the first `args.only` of the missing runs, or all, `args.at_once` side by side on equal parts of the cores:
    one run alone leaves cores idle while it begins and is audited. Each is archived when it ends.
    """
    whole, done, begun = sum(run.cost for run in runs), 0.0, time.monotonic()
    console.print(f"{len(runs)} runs are missing, {whole:.0f} times the cost of one")
    costs, some = {run.name: run.cost for run in runs}, runs[: args.only]
    here = workers_of({"workers": "auto", "device": "auto"})
    workers = "auto" if args.at_once == 1 else max(1, here // args.at_once)
    calls = {run.name: (run, workers) for run in some}
    for name, summary in side_by_side(made, calls, args.at_once) if calls else ():
        done += costs[name]
        left = (time.monotonic() - begun) / done * (whole - done)
        robust = summary["robust"][RULE]["value"]
        console.print(f"{name}: {robust:.1f} % robust; {report.clock(left)} to go for all")


def made(run: Run, workers: int | str) -> dict:
    """The summary of a run, which is archived."""
    return (by_seed if run.by_seed else finished)(run.given, workers)[0]
