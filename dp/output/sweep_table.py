"""The table of a sweep, for the terminal and as data."""

from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from dp.output.report import clock, headline
from dp.output.row_table import cells


def sweep_table(runs: Sequence[dict], title: str) -> Table:
    """The table of a sweep, with one line for each of its runs: the overrides, then the figures or the error.

    A run is one line of the notes of `dp/runs/sweep.py`. Overrides that all runs have are left out.
    """
    table, failed = Table(title=title, box=box.SIMPLE_HEAD), []
    shared = set.intersection(*(set(run["overrides"]) for run in runs)) if len(runs) > 1 else set()
    for name in ("cell", "standard", "", "robust", "", "standard, 2nd rule", "robust, 2nd rule", "NFE"):
        table.add_column(name, justify="left" if name == "cell" else "right", overflow="fold")
    for run in runs:
        summary, name = run["summary"], " ".join(o for o in run["overrides"] if o not in shared)
        if summary is None:
            table.add_row(Text(name), "-")
            failed.append(f"{name} failed: {run['error']}")
            continue
        rule, robust, _ = headline(summary)
        second = summary["config"]["protocol"]["report"][1:2]
        more = [cells(summary[side].get(second[0]))[0] if second else "-" for side in ("standard", robust)]
        first = [*cells(summary["standard"][rule])[:2], *cells(summary[robust][rule])[:2]]
        table.add_row(Text(name), *first, *more, str(summary["caveats"]["nfe"]))
    table.caption = Text("\n".join(["percent; intervals: 95 %", *failed]))
    return table


def cost_table(runs: Sequence[dict]) -> Table:
    """The table of what the runs of a sweep would cost, with one line for each, and their sum."""
    table, total = Table("cell", title=f"cost of {len(runs)} runs", box=box.SIMPLE_HEAD), 0.0
    shared = set.intersection(*(set(run["overrides"]) for run in runs)) if len(runs) > 1 else set()
    costs = [run["cost"] for run in runs if run["cost"]]
    for name in (f"one {costs[0]['one']}", f"{costs[0]['several']} of them", "GB"):
        table.add_column(name, justify="right")
    for run in runs:
        name, cost = Text(" ".join(o for o in run["overrides"] if o not in shared)), run["cost"]
        if cost is None:
            table.add_row(name, Text(f"failed: {run['error']}"))
            continue
        total += cost["seconds"]
        table.add_row(name, clock(cost["seconds"]), clock(cost["together"]), f"{cost['memory'] / 1e9:.2g}")
    table.add_row("all", clock(total), clock(sum(cost["together"] for cost in costs)), "")
    return table


def sweep_frame(runs: Sequence[dict]) -> pd.DataFrame:
    """The same as data: one line for each run, with its overrides, folder, figures in percent, and error if any."""
    lines = []
    for run in runs:
        line = {"overrides": " ".join(run["overrides"]), "folder": run["folder"], "error": run["error"]}
        for name in ("standard", "robust", "seen") if run["summary"] else ():
            for rule, figure in run["summary"].get(name, {}).items():
                low, high = figure["wilson95"]
                line |= {f"{name}_{rule}": figure["value"], f"{name}_{rule}_lo": low, f"{name}_{rule}_hi": high}
        if run["summary"]:
            rule, robust, _ = headline(run["summary"])
            line |= {"rule": rule, "in_loop": robust == "seen", "nfe": run["summary"]["caveats"]["nfe"]}
        lines.append(line)
    return pd.DataFrame(lines)
