"""Certified accuracy over the radius, from the rows of images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dp.certification.bounds import ABSTAIN
from dp.certification.rows import Row
from dp.statistics.intervals import wilson

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the printed table, as the papers print them


class Curve(NamedTuple):
    """A certified-accuracy curve. `radii`: of the images that are right, ascending; `images`: all; `cap`: its end."""

    name: str
    radii: tuple[float, ...]
    images: int
    cap: float


def curve(name: str, rows: Sequence[Row], cap: float) -> Curve:
    """The curve of these rows."""
    return Curve(name, tuple(sorted(row.radius for row in rows if row.correct)), len(rows), cap)


def certified(rows: Sequence[Row], radius: float) -> dict:
    """Certified accuracy at a radius, in percent: the share of images that are right with at least this radius.

    With the 95 % Wilson interval over images (`low`, `high`) and the number of such images (`right`).
    """
    right = sum(row.correct and row.radius >= radius for row in rows)
    low, high = wilson(right / len(rows), len(rows))
    figures = {"accuracy": right / len(rows), "low": low, "high": high}
    return {"radius": radius, "right": right, **{name: 100 * value for name, value in figures.items()}}


def figures(rows: Sequence[Row]) -> dict:
    """The figures of a finished certification: the table at `RADII`, abstentions, and mean radius of right images."""
    right = [row.radius for row in rows if row.correct]
    return {
        "images": len(rows),
        "certified": [certified(rows, radius) for radius in RADII],
        "abstained": sum(row.predicted == ABSTAIN for row in rows),
        "mean_radius": float(np.mean(right)) if right else None,
        "evaluations": sum(row.evaluations for row in rows),
    }
