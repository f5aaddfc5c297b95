"""Worst of m and vote of k: what more samples of the same image do to robust accuracy."""

from matplotlib.figure import Figure

from dp.figures import style
from dp.figures.stored import Data, lines


def draw(data: Data) -> Figure:
    """Left: all of m samples must be right. Right: the vote of k samples decides.

    `names` (D,) are the defenses; `worst` and `vote` (D,M,3) their robust accuracies in percent for m = 1..M, with the
    ends of their intervals.
    """
    figure, (axes,) = style.sheet(10.5, 4.4, 1, 2, sharey=True)
    titles = {"worst": "worst of m samples", "vote": "vote of k samples"}
    for axis, (rule, title) in zip(axes, titles.items(), strict=True):
        for k, (name, curve) in enumerate(zip(lines(data["names"]), data[rule], strict=True)):
            counts = range(1, len(curve) + 1)
            look = style.series(k)
            axis.fill_between(counts, curve[:, 1], curve[:, 2], color=look["color"], alpha=0.08, linewidth=0)
            axis.plot(counts, curve[:, 0], **look, markevery=(k, 5), markersize=5, label=name)
        axis.set(
            title=title, xlabel=title.split()[2] + ", the number of samples of an image", xticks=(1, 5, 10, 15, 20)
        )
        axis.grid(True)
    axes[0].set(ylabel="robust accuracy (%)", ylim=(0, 100))
    axes[0].legend(loc="upper right")
    style.head(figure, str(data["about"]))
    return figure
