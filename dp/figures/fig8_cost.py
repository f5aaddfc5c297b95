"""Figure 8: seconds and peak memory of one attack gradient over U, single- against multi-step resampling."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dp.figures import style
from dp.figures.stored import Data

JUMPS = (1, 5, 10, 15, 20)
CURVES = (("multi", "store"), ("multi", "recompute"), ("single", "store"), ("single", "recompute"))
WORDS = {"store": "all activations kept", "recompute": "activation checkpointing"}
QUANTITIES = {"seconds": "CPU time of one gradient (s)", "gigabytes": "peak memory of one gradient (GB)"}
LIMIT = 16.0  # GB


class Cost(NamedTuple):
    """What one gradient takes. `measured`: False where it is extrapolated from smaller U."""

    seconds: float
    gigabytes: float
    measured: bool


def cost(data: Data, resampling: str, memory: str, jump: int) -> Cost:
    """The cost at U = `jump`: as measured, or from the line through the two largest U that were measured.

    Single-step resampling has the same network calls at every U, so the largest measured one stands for the others.
    `data`: `resampling`, `memory`, `jump`, `seconds` and `megabytes` (N,), one entry for each measurement.
    """
    own = (data["resampling"] == resampling) & (data["memory"] == memory)
    order = np.argsort(data["jump"][own])
    jumps = data["jump"][own][order]
    sides = [data["seconds"][own][order], data["megabytes"][own][order] / 1000]
    if jump in jumps:
        at = jumps.tolist().index(jump)
        return Cost(float(sides[0][at]), float(sides[1][at]), True)
    if resampling == "single":
        return Cost(float(sides[0][-1]), float(sides[1][-1]), True)
    (a, b), pairs = jumps[-2:], [side[-2:] for side in sides]
    found = [float(low + (high - low) * (jump - a) / (b - a)) for low, high in pairs]
    return Cost(found[0], found[1], bool(jump < b))


def saved(data: Data, jump: int = 20, memory: str = "store") -> tuple[float, float]:
    """What single-step resampling saves of the time and of the memory of multi-step resampling, in percent."""
    single, multi = (cost(data, resampling, memory, jump) for resampling in ("single", "multi"))
    return 100 * (1 - single.seconds / multi.seconds), 100 * (1 - single.gigabytes / multi.gigabytes)


def draw(data: Data) -> Figure:
    """Left: seconds. Right: gigabytes, with the limit of 16 GB. Dashed and hollow: extrapolated."""
    figure, (axes,) = style.sheet(10.5, 4.6, 1, 2)
    handles = []
    for axis, (quantity, label) in zip(axes, QUANTITIES.items(), strict=True):
        handles = [_curve(axis, data, k, quantity) for k in range(len(CURVES))]
        axis.set(xlabel="U", ylabel=label, xticks=JUMPS, yscale="log")
        axis.grid(True, which="major")
        axis.yaxis.set_major_formatter("{x:g}")
    axes[1].axhline(LIMIT, color=style.GRAY, linewidth=1, linestyle=":")
    axes[1].annotate("16 GB", (1, LIMIT), (0, 3), textcoords="offset points", fontsize=8, color=style.GRAY)
    more = [Line2D([], [], color=style.GRAY, linestyle="--", marker="o", mfc="none", label="extrapolated")]
    figure.legend(handles=[*handles, *more], loc="outside lower center", ncols=3)
    time, memory = saved(data)
    figure.suptitle(f"{data['about']}\nsingle- instead of multi-step at U = 20, all kept: {time:.0f} % less time, {memory:.0f} % less memory")  # fmt: skip  # noqa: E501
    return figure


def _curve(axis: Axes, data: Data, k: int, quantity: str) -> Line2D:
    resampling, memory = CURVES[k]
    costs = [cost(data, resampling, memory, jump) for jump in JUMPS]
    values = [c.seconds if quantity == "seconds" else c.gigabytes for c in costs]
    sure = sum(c.measured for c in costs)  # extrapolated are the largest U alone
    color, marker = style.COLORS[k + 1], style.MARKERS[k]
    axis.plot(JUMPS[max(0, sure - 1) :], values[max(0, sure - 1) :], "--", color=color, marker=marker, mfc="white", markersize=6)  # fmt: skip  # noqa: E501
    (line,) = axis.plot(JUMPS[:sure], values[:sure], "-", color=color, marker=marker, markersize=6)
    line.set_label(f"{resampling}-step, {WORDS[memory]}")
    return line
