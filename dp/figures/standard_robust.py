"""Standard against robust accuracy of all defenses that are archived, under the same protocol."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dp.figures import style
from dp.figures.stored import Data, lines


def draw(data: Data) -> Figure:
    """A point with two intervals for each defense, with a number; the legend says which.

    `names` (D,); `standard`, `robust` (D,3): accuracies in percent with the ends of their intervals; `images` (D,).
    """
    order = np.argsort(-data["robust"][:, 0], kind="stable")
    figure, ((axis, words),) = style.sheet(10.5, 4.8, 1, 2, width_ratios=(1.4, 1))
    for k, at in enumerate(order):
        x, y = data["standard"][at], data["robust"][at]
        look = style.series(k)
        bars = {"xerr": style.spread(x[None]), "yerr": style.spread(y[None]), "elinewidth": 0.7, "capsize": 2}
        axis.errorbar(x[:1], y[:1], **bars, color=look["color"], marker=look["marker"], markersize=6, linestyle="none")
        axis.annotate(str(k + 1), (x[0], y[0]), (5, 4), textcoords="offset points", weight="bold", color=look["color"])
    axis.set(xlabel="standard accuracy, average of 20 samples (%)", ylabel="robust accuracy, average of 20 samples (%)")
    axis.grid(True, axis="both")
    _list(words, data, order.tolist())
    style.head(figure, str(data["about"]))
    return figure


def _list(axis: Axes, data: Data, order: list[int]) -> None:
    names = lines(data["names"])
    for k, at in enumerate(order):
        robust, images = data["robust"][at, 0], int(data["images"][at])
        text = f"{k + 1}  {names[at]}: {robust:.1f} %, {images} images"
        axis.text(0, 1 - k / max(12, len(order)), text, va="top", fontsize=8, transform=axis.transAxes)
    axis.set_axis_off()
