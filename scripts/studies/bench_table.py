"""The table of bench.py: one line for each ratio, on the screen and in results/tables/bench.csv."""

import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

console = Console(width=118, highlight=False)


class Line(NamedTuple):
    """A ratio of two measured figures in a unit, and what it should not exceed, if anything."""

    measured: str
    ratio: float
    bound: float | None
    one: float
    other: float
    unit: str


class Ratios:
    """The ratios of one start of the bench."""

    def __init__(self, title: str):
        self.title, self.lines = title, list[Line]()

    def add(self, name: str, one: float, other: float, *, bound: float | None = None, unit: str = "s") -> None:
        """Add the line of one / other, and print it to standard error. `bound`: what the ratio should not exceed."""
        line = Line(name, one / other, bound, one, other, unit)
        self.lines.append(line)
        print(f"{name}: {line.ratio:.3g} ({one:.4g} / {other:.4g} {unit})", file=sys.stderr, flush=True)

    def show(self) -> None:
        """Print the table."""
        table = Table("measured", "ratio", "at most", "", box=box.SIMPLE_HEAD, title=self.title)
        for line in self.lines:
            limit = "" if line.bound is None else f"{line.bound:.2f}"
            table.add_row(line.measured, f"{line.ratio:.3g}", limit, f"{line.one:.4g} / {line.other:.4g} {line.unit}")
        console.print(table)

    def write(self, path: Path, mode: str) -> None:
        """Put the lines into a table of all modes, in place of those of the same mode."""
        new = pd.DataFrame([{"mode": mode, **line._asdict()} for line in self.lines])
        old = pd.read_csv(path) if path.exists() else pd.DataFrame(new[:0])
        pd.concat([pd.DataFrame(old[old["mode"] != mode]), new]).to_csv(path, index=False, float_format="%.4g")
        console.print(f"written: {path}")
