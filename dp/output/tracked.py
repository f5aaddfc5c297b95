"""What a tracker is told of a finished run: figures, curves, and tables, as plain data."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dp.output.iterations import Curve
from dp.output.published import published_rows
from dp.output.report import headline

SIDES = ("standard", "robust", "undefended_standard", "undefended", "null", "seen", "null_seen")


class Grid(NamedTuple):
    """A table. Values of the columns `pictures` are PNG files in base64, or None."""

    columns: list[str]
    pictures: list[str]
    rows: list[list[Any]]


class Content(NamedTuple):
    """A finished run or training. `figures`: numbers and short texts by name; `curves`: by condition."""

    figures: dict[str, float | str]
    curves: dict[str, Curve] = {}  # noqa: RUF012 (never changed)
    tables: dict[str, Grid] = {}  # noqa: RUF012


def scalars(summary: Mapping[str, Any]) -> dict[str, float | str]:
    """The numbers and texts of a summary."""
    return {name: value for name, value in summary.items() if isinstance(value, int | float | str)}


def figures_of(summary: Mapping[str, Any], preset: str | None) -> dict[str, float | str]:
    """The figures of a run by name.

    `robust/vote`, with `/low`, `/high` and `/seed_std`, and so on, for every decision rule in percent; `nfe`; the
    audit's counts; and the cells of the paper's table that the run stands for, such as `table1/robust` and
    `table1/published/robust`, if its preset or a published row names one.
    """
    figures = scalars(summary)
    for side in SIDES:
        for rule, figure in summary.get(side, {}).items():
            name = f"{side}/{rule}"
            low, high = figure["wilson95"]
            figures |= {name: figure["value"], f"{name}/low": low, f"{name}/high": high}
            if figure["seed_std"] is not None:
                figures[f"{name}/seed_std"] = figure["seed_std"]
    figures |= {name: summary["caveats"][name] for name in ("nfe", "attack_nfe")}
    if summary["audited"]:
        figures |= {f"audit/{name}": summary["audited"][name] for name in ("checks", "FAIL", "WARN")}
    return figures | _cells(summary, preset)


def _cells(summary: Mapping[str, Any], preset: str | None) -> dict[str, float | str]:
    published = published_rows(summary["config"])
    named = re.search(r"table(\d+)", preset or "")
    numbers = {named[1]} if named else set() if preset else {row["table"] for row in published}
    rule, robust, null = headline(dict(summary))
    cells: dict[str, float | str] = {}
    for number in sorted(numbers):
        for name, side in (("standard", "standard"), ("robust", robust), ("null", null)):
            if rule in summary.get(side, {}):
                cells[f"table{number}/{name}"] = summary[side][rule]["value"]
        for name in ("standard", "robust"):
            printed = {row[name] for row in published if row["table"] == number and row[name]}
            if len(printed) == 1:  # rows that nothing tells apart, such as LoRID's two, have no figure
                cells[f"table{number}/published/{name}"] = float(printed.pop())
    return cells


def audit_grid(summary: Mapping[str, Any]) -> Grid | None:
    """The findings of the audit, or None without one."""
    if not summary["audited"]:
        return None
    columns = ["check", "verdict", "value", "threshold"]
    return Grid(columns, [], [[str(finding[name]) for name in columns] for finding in summary["audited"]["findings"]])


def image_grid(rows: Sequence[Mapping[str, Any]], pictures: Mapping[int, Mapping[str, str]]) -> Grid:
    """The table of images: their rows, and by id the pictures that there are (see `PICTURES`)."""
    columns = ["id", "seed", "label", "clean_vote", "adv_vote", "clean", "adv", "distance", "iterations", "lost_at"]
    lines = [
        [pictures[row["id"]].get(name) for name in PICTURES] + [_cell(row[name]) for name in columns] for row in rows
    ]
    return Grid([*PICTURES, *columns], list(PICTURES), lines)


PICTURES = ("original", "attacked", "mask", "purified")  # mask and purified: of the attacked image


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value
