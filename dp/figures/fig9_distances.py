"""Figure 9: how far purified images are from the original in feature space, for each defense."""

import numpy as np
from matplotlib.figure import Figure

from dp.figures import style
from dp.figures.stored import Data, lines

HATCHES = {"clean": "", "attacked": "///"}


def draw(data: Data) -> Figure:
    """Two bars for each defense. `names` (D,); `clean` and `attacked` (D,3): distances with their intervals."""
    names = lines(data["names"])
    figure, ((axis,),) = style.sheet(8.5, 4.2)
    places, width = np.arange(len(names)), 0.38
    for k, (side, hatch) in enumerate(HATCHES.items()):
        at, points = places + (k - 0.5) * width, data[side]
        bars = axis.bar(at, points[:, 0], width, color=("#9ecae1", "#fdd0a2")[k], edgecolor="black", hatch=hatch)
        axis.errorbar(at, points[:, 0], yerr=style.spread(points), fmt="none", ecolor="black", capsize=3)
        bars.set_label(f"purified from the {side} image")
        for x, (value, _, high) in zip(at, points, strict=True):
            axis.annotate(f"{value:.2f}", (x, high), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    axis.set(xticks=places, xticklabels=names, ylabel="distance from the original's features, l2")
    axis.set_ylim(0, 1.15 * max(float(data[side].max()) for side in HATCHES))
    axis.legend(loc="upper right")
    style.head(figure, str(data["about"]))
    return figure
