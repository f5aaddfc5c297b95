"""Figure 7: hetero over the threshold of its mask and over its two noise times, and the trade-off of two purifiers."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dp.figures import style
from dp.figures.stored import Data


def draw(data: Data) -> Figure:
    """Left: tau. Middle: robust accuracy over t_l and t_s. Right: standard against robust accuracy.

    `tau` (N,), `pairs` (N,2) and `t` (N,) are what is swept; `<name>_standard` and `<name>_robust` (N,3) are accuracies
    in percent with the ends of their intervals.
    """
    figure, ((left, middle, right),) = style.sheet(13, 4.2, 1, 3)
    for k, side in ((1, "standard"), (2, "robust")):
        style.errorbars(left, data["tau"], data[f"tau_{side}"], k, label=side)
    left.set(xlabel="tau, the threshold of the mask", ylabel="accuracy, average of 20 samples (%)")
    left.set(title="hetero over tau", ylim=(55, 102))
    left.grid(True)
    left.legend(loc="center right")
    _map(figure, middle, data)
    _tradeoff(right, data)
    style.head(figure, str(data["about"]))
    return figure


def _map(figure: Figure, axis: Axes, data: Data) -> None:
    strong, weak = (np.unique(data["pairs"][:, k]) for k in (0, 1))
    grids = np.full((3, len(weak), len(strong)), np.nan)
    for (t_l, t_s), point in zip(data["pairs"], data["pairs_robust"], strict=True):
        grids[:, weak.tolist().index(t_s), strong.tolist().index(t_l)] = point
    shown = style.heat(axis, *grids)
    figure.colorbar(shown, ax=axis)
    axis.set(xticks=range(len(strong)), xticklabels=[f"{t:.2g}" for t in strong], xlabel="t_l, strong noise")
    axis.set(yticks=range(len(weak)), yticklabels=[f"{t:.2g}" for t in weak], ylabel="t_s, weak noise")
    axis.set_title("robust accuracy (%) of hetero over its noise times, 95 %")


def _tradeoff(axis: Axes, data: Data) -> None:
    for k, name, words in ((2, "pairs", "hetero, over t_l and t_s"), (1, "t", "uniform, over t")):
        standard, robust = (data[f"{name}_{side}"][:, 0] for side in ("standard", "robust"))
        look = style.series(k)
        look["linestyle"] = "none" if name == "pairs" else look["linestyle"]
        axis.plot(standard, robust, **look, label=words, markersize=6, mfc="none")
    for t, x, y in zip(data["t"], data["t_standard"][:, 0], data["t_robust"][:, 0], strict=True):
        aside, side = ((8, 0), "left") if x > 99 or x < 80 else ((-8, 0), "right")
        axis.annotate(f"t = {t:.2g}", (x, y), aside, textcoords="offset points", fontsize=8, ha=side, va="center")
    axis.set(xlabel="standard accuracy (%)", ylabel="robust accuracy (%)", title="the trade-off", xlim=(None, 104))
    axis.set_xticks(range(75, 101, 5))
    axis.grid(True)
    axis.legend(loc="lower left")
