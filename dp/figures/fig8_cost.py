"""Figure 8: seconds and peak memory of one attack gradient over U, single- against multi-step resampling."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from dp.figures import style
from dp.figures.stored import Data

JUMPS = (1, 5, 10, 15, 20)
CURVES = (("multi", "store"), ("multi", "recompute"), ("single", "store"), ("single", "recompute"))
WORDS = {"store": "all activations kept", "recompute": "activation checkpointing"}
QUANTITIES = {
    "seconds": ("CPU time of one gradient (s)", (20, 50, 100, 200, 400)),
    "gigabytes": ("memory of one gradient at its peak (GB)", (0.2, 0.5, 1, 2, 5, 10)),
}
LIMIT = 16.0  # GB


class Cost(NamedTuple):
    """What one gradient takes. `measured`: at this U; else it is computed from other U."""

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
    jumps = data["jump"][own][order].tolist()
    sides = [data[name][own][order].astype(float) / unit for name, unit in (("seconds", 1), ("megabytes", 1000))]
    if jump in jumps or resampling == "single":
        at = jumps.index(jump) if jump in jumps else -1
        return Cost(float(sides[0][at]), float(sides[1][at]), jump in jumps)
    a, b = jumps[-2:]
    seconds, gigabytes = (float(side[-2] + (side[-1] - side[-2]) * (jump - a) / (b - a)) for side in sides)
    return Cost(seconds, gigabytes, False)


def saved(data: Data, jump: int = 20, memory: str = "store") -> tuple[float, float]:
    """What single-step resampling saves of the time and of the memory of multi-step resampling, in percent."""
    single, multi = (cost(data, resampling, memory, jump) for resampling in ("single", "multi"))
    return 100 * (1 - single.seconds / multi.seconds), 100 * (1 - single.gigabytes / multi.gigabytes)


def draw(data: Data) -> Figure:
    """Left: seconds. Right: gigabytes, with the limit of 16 GB. Hollow: not measured; dashed: extrapolated."""
    figure, (axes,) = style.sheet(10.5, 4.8, 1, 2)
    handles = []
    for axis, (quantity, (label, ticks)) in zip(axes, QUANTITIES.items(), strict=True):
        handles = [_curve(axis, data, k, quantity) for k in range(len(CURVES))]
        axis.set(xlabel="U", ylabel=label, xticks=JUMPS, yscale="log")
        axis.grid(True, axis="both", which="major")
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.yaxis.set_minor_formatter(NullFormatter())
    axes[1].axhline(LIMIT, color=style.GRAY, linewidth=1, linestyle=":")
    axes[1].annotate("16 GB", (1, LIMIT), (0, 3), textcoords="offset points", fontsize=8, color=style.GRAY)
    hollow: dict[str, Any] = {"color": style.GRAY, "marker": "o", "mfc": "white"}
    more = [Line2D([], [], **hollow, linestyle="--", label="extrapolated")]
    more += [Line2D([], [], **hollow, linestyle="-", label="not measured: the same network calls")]
    figure.legend(handles=[*handles, *more], loc="outside lower center", ncols=3)
    time, memory = saved(data)
    words = f"single- instead of multi-step at U = 20, all kept: {time:.0f} % less time, {memory:.0f} % less memory"
    style.head(figure, f"{data['about']}\n{words}")
    return figure


def _curve(axis: Axes, data: Data, k: int, quantity: str) -> Line2D:
    resampling, memory = CURVES[k]
    costs = [cost(data, resampling, memory, jump) for jump in JUMPS]
    values = [c.seconds if quantity == "seconds" else c.gigabytes for c in costs]
    last = max(at for at, c in enumerate(costs) if c.measured or resampling == "single")
    look = {"color": style.COLORS[k + 1], "marker": style.MARKERS[k], "markersize": 6}
    axis.plot(JUMPS[last:], values[last:], "--", **look, mfc="white")
    axis.plot(JUMPS[: last + 1], values[: last + 1], "-", **look, mfc="white")
    sure = [at for at, c in enumerate(costs) if c.measured]
    axis.plot([JUMPS[at] for at in sure], [values[at] for at in sure], linestyle="none", **look)
    return Line2D([], [], **look, label=f"{resampling}-step, {WORDS[memory]}")
