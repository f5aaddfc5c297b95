"""The figure of a sweep: accuracy over what was swept. One number: a curve; two: heat maps; other words: a list."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dp.figures import style
from dp.output.report import headline

SIDES = (("standard", 1), ("robust", 2))  # with the number of the curve's look
Cell = dict[str, str]  # key to value, as in the command


def swept(runs: Sequence[dict]) -> list[Cell]:
    """Of each run the words that not all runs have. A run is one of `dp.runs.sweep.runs_of`."""
    words = [dict(word.split("=", 1) for word in run["overrides"] if "=" in word) for run in runs]
    keys = [key for key in dict.fromkeys(k for word in words for k in word) if len({w.get(key) for w in words}) > 1]
    return [{key: word[key] for key in keys if key in word} for word in words]


def numbers(cells: Sequence[Cell]) -> np.ndarray | None:
    """The values (runs,keys) of cells that all have the same keys and numbers for them, else None."""
    try:
        found = [[float(Fraction(value)) for value in cell.values()] for cell in cells]
    except (ValueError, ZeroDivisionError):
        return None
    return np.array(found) if len({tuple(cell) for cell in cells}) == 1 else None


def figure(runs: Sequence[dict]) -> Figure | None:
    """The figure of the runs that are finished; None for fewer than two, and where nothing differs between them."""
    done = [run for run in runs if run["summary"] is not None]
    cells = swept(done)
    if len(done) < 2 or not any(cells):
        return None
    points = np.array([_points(run["summary"]) for run in done])  # (runs,2,3)
    values, keys = numbers(cells), list(cells[0])
    if values is not None and len(keys) == 1:
        made = _curves(values[:, 0], points, keys[0])
    elif values is not None and len(keys) == 2:
        made = _maps(values, points, keys)
    else:
        made = _list([" ".join(f"{k}={v}" for k, v in cell.items()) for cell in cells], points)
    style.head(made, _title(done[0]["summary"], len(runs) - len(done)))
    return made


def draw(runs: Sequence[dict], stem: Path) -> list[Path]:
    """Draw the figure beside the table of a sweep, `stem`.svg and .png. Returns no paths where there is no figure."""
    with style.looks():
        made = figure(runs)
        return [] if made is None else style.save(made, stem)


def _points(summary: dict) -> list[tuple[float, float, float]]:
    rule, robust, _ = headline(summary)
    figures = summary["standard"][rule], summary[robust][rule]
    return [(f["value"], *f["wilson95"]) for f in figures]


def _title(summary: dict, failed: int) -> str:
    choices, config = summary["config"]["choices"], summary["config"]
    rule, *_ = headline(summary)
    words = [choices[part] for part in ("dataset", "purifier", "attack")]
    words += [f"{config['threat_model']['norm']} {config['threat_model']['eps']}", f"protocol {choices['protocol']}"]
    words += [
        f"{summary['standard'][rule]['n']} images",
        f"{len(summary['per_seed'])} seeds",
        f"rule {rule}",
        "bars: 95 %",
    ]
    return ", ".join(words) + (f"; {failed} of the runs failed or are not finished" if failed else "")


def _curves(x: np.ndarray, points: np.ndarray, key: str) -> Figure:
    made, ((axis,),) = style.sheet(7.5, 4.4)
    order = np.argsort(x)
    for row, (side, k) in enumerate(SIDES):
        style.errorbars(axis, x[order], points[order, row], k, label=side)
    axis.set(xlabel=key, ylabel="accuracy (%)", ylim=(-2, 102))
    axis.grid(True)
    axis.legend()
    return made


def _maps(values: np.ndarray, points: np.ndarray, keys: list[str]) -> Figure:
    places = [sorted({*column}) for column in values.T.tolist()]
    made, (axes,) = style.sheet(max(8.0, 2.2 * len(places[0])), max(3.6, 0.7 * len(places[1])), 1, 2)
    for row, ((side, _), axis) in enumerate(zip(SIDES, axes, strict=True)):
        grids = np.full((3, len(places[1]), len(places[0])), np.nan)
        for (a, b), point in zip(values.tolist(), points[:, row], strict=True):
            grids[:, places[1].index(b), places[0].index(a)] = point
        made.colorbar(style.heat(axis, *grids), ax=axis)
        axis.set(title=f"{side} accuracy (%), 95 %", xlabel=keys[0], ylabel=keys[1])
        axis.set(xticks=range(len(places[0])), xticklabels=[f"{v:g}" for v in places[0]])
        axis.set(yticks=range(len(places[1])), yticklabels=[f"{v:g}" for v in places[1]])
    return made


def _list(names: list[str], points: np.ndarray) -> Figure:
    made, ((axis,),) = style.sheet(9.0, 1.6 + 0.34 * len(names))
    y = np.arange(len(names))[::-1]
    for row, (side, k) in enumerate(SIDES):
        look = style.series(k) | {"linestyle": "none"}
        axis.errorbar(points[:, row, 0], y + 0.12 - 0.24 * row, xerr=style.spread(points[:, row]), **look, markersize=5, capsize=2.5, label=side)  # fmt: skip  # noqa: E501
    axis.set(yticks=y, yticklabels=names, xlabel="accuracy (%)", xlim=(-2, 102))
    axis.grid(True, axis="both")
    made.legend(loc="outside lower center", ncols=2)
    return made
