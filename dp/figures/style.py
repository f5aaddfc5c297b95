"""How figures look: they can be told apart in gray and by the color-blind, and the same data give the same bytes."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context

# Okabe and Ito's colors, from dark to light, each with a marker and a line of its own.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
STANDARD, ROBUST, GRAY = COLORS[1], COLORS[2], "#777777"
MAP = "cividis"  # of heat maps: as bright as it is large, for every eye
RC = {
    "svg.hashsalt": "dp",  # the ids in an SVG are random otherwise
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.dpi": 130,
}
NO_DATES: dict[str, dict[str, Any]] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
LETTERS = 12.5  # of a title in an inch
INK = 0.5  # of a color map: cells above it are bright, so that their text is black


def looks() -> Any:
    """The context in which figures are drawn and saved; settings of the user's own do not count."""
    return context(["default", RC])


def series(k: int) -> dict[str, Any]:
    """Color, marker and line of the k-th curve."""
    k %= len(COLORS)
    return {"color": COLORS[k], "marker": MARKERS[k], "linestyle": LINES[k]}


def sheet(width: float, height: float, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Figure, Any]:
    """A figure of so many inches, and its axes (rows,columns) as an array."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def head(figure: Figure, text: str) -> None:
    """The words above a figure, in lines that fit its width."""
    width = int(LETTERS * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(line, width) for line in text.split("\n")))


def spread(points: Any) -> Any:
    """The lengths (2,N) of error bars of points (N,3): value, low, high. A value outside has none on its side."""
    value, low, high = points.T
    return (value - low).clip(0), (high - value).clip(0)


def errorbars(axis: Axes, x: Any, points: Any, k: int, **more: Any) -> None:
    """The k-th curve through points (N,3), value, low and high, over x (N,)."""
    axis.errorbar(x, points[:, 0], yerr=spread(points), capsize=2.5, markersize=5, **{**series(k), **more})


def heat(axis: Axes, grid: Any, low: Any = None, high: Any = None) -> Any:
    """A heat map of a grid (R,C), each cell with its value and its interval; NaN: none. Returns the image."""
    shown = axis.imshow(grid, origin="lower", cmap=MAP, aspect="auto")
    for (row, column), value in _cells(grid):
        text = f"{value:.1f}"
        if low is not None:
            text += f"\n{low[row, column]:.0f} to {high[row, column]:.0f}"
        color = "black" if float(shown.norm(np.array(value))) > INK else "white"  # pyright: ignore[reportArgumentType]
        axis.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    axis.grid(False)
    return shown


def _cells(grid: Any) -> list[tuple[tuple[int, int], float]]:
    return [((r, c), v) for r, line in enumerate(grid.tolist()) for c, v in enumerate(line) if v == v]


def save(figure: Figure, stem: Path) -> list[Path]:
    """Save a figure as `stem`.svg and `stem`.png, without dates. Call it inside `looks()`."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, metadata in NO_DATES.items():
        paths.append(stem.with_name(f"{stem.name}.{kind}"))
        figure.savefig(paths[-1], metadata=metadata)
    return paths
