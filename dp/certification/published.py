"""Certified accuracies that others published, for the dataset of a certification."""

import csv
from itertools import groupby
from pathlib import Path

from dp.output.published import PUBLISHED

FILE = PUBLISHED / "certified.csv"


def published_lines(dataset: str, sigma: float, file: Path = FILE) -> list[str]:
    """A line of text for each method and source, in percent at l2 radii: of the same sigma, or where none is stated."""
    with file.open(newline="") as text:
        rows = [row for row in csv.DictReader(text) if row["dataset"] == dataset]
    fitting = [row for row in rows if not row["sigma"] or abs(float(row["sigma"]) - sigma) < 1e-9]
    parts = groupby(fitting, lambda row: [row[key] for key in ("printed", "classifier", "sigma", "source", "flag")])
    return [_line([*part]) for _, part in parts]


def _line(rows: list[dict]) -> str:
    first = rows[0]
    sigma = f"sigma {first['sigma']}" if first["sigma"] else ""
    setting = [part for part in (first["printed"], first["classifier"], sigma, first["source"]) if part]
    values = ", ".join(f"{row['certified']} at {row['radius']}" for row in rows)
    notes = "; ".join(dict.fromkeys(row["note"] for row in rows if row["note"]))
    line = f"published ({', '.join(setting)}): {values}"
    return line + (f"; {first['flag']}: {notes}" if first["flag"] else f"; {notes}" if notes else "")
