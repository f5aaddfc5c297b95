"""The picture of certified accuracy over the radius."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from dp.certification.curve import Curve

COLORS = ("#0b6e99", "#c1440e", "#7a5195", "#5c8a3a", "#b8860b", "#444444")
STYLES = ("-", "--", "-.")  # equal curves stay visible


def plot(axis: Axes, curves: Sequence[Curve]) -> None:
    """Draw curves, each with its cap as a dotted line: beyond it no number of right samples certifies anything."""
    for k, each in enumerate(curves):
        color, right = COLORS[k % len(COLORS)], len(each.radii)
        shares = [100 * (right - i) / each.images for i in range(right)]  # up to the i-th radius, that included
        end = each.radii[-1] if right else 0.0
        heights, style = [*(shares[:1] or [0.0]), *shares, 0.0], STYLES[k % len(STYLES)]
        axis.step([0.0, *each.radii, end], heights, color=color, linestyle=style, label=each.name)
        axis.axvline(each.cap, color=color, linestyle=":", linewidth=1)
    axis.set(xlabel="l2 radius, images in [0,1]; dotted: the largest possible", ylabel="certified accuracy, %")
    axis.set(xlim=(0, 1.05 * max(each.cap for each in curves)), ylim=(-2, 102))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def draw(path: Path, curves: Sequence[Curve], title: str) -> None:
    """Save the picture of some curves."""
    figure, axis = plt.subplots(figsize=(6.4, 4.8), layout="constrained")
    plot(axis, curves)
    axis.set_title(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
