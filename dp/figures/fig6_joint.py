"""Figure 6: features of original images and of purified samples in one plane."""

from matplotlib.figure import Figure

from dp.figures import style
from dp.figures.stored import Data, lines

LEVELS = 6  # contour lines of a density


def draw(data: Data) -> Figure:
    """A panel for each defense: the density of original images as lines, purified samples as points.

    `x` and `y` (G,) with `density` (G,G) of the originals; `clean` and `attacked` (D,N,2), samples of purified clean
    and attacked images.
    """
    names = lines(data["names"])
    figure, (axes,) = style.sheet(13, 4.2, 1, len(names), sharex=True, sharey=True)
    for m, (axis, name) in enumerate(zip(axes, names, strict=True)):
        axis.contour(data["x"], data["y"], data["density"], LEVELS, cmap="gray", linewidths=0.8)
        for side, k, size in (("clean", 1, 9), ("attacked", 2, 12)):
            look = style.series(k)
            x, y = data[side][m].T
            label = f"purified, {side}"
            axis.scatter(x, y, s=size, marker=look["marker"], facecolors="none", edgecolors=look["color"], linewidths=0.7, label=label)  # fmt: skip  # noqa: E501
        axis.set(title=name, xlabel="first component")
        axis.grid(False)
    axes[0].set_ylabel("second component")
    handles, words = axes[0].get_legend_handles_labels()
    figure.legend(handles, [f"{text} (lines: density of originals)" if k == 0 else text for k, text in enumerate(words)], loc="outside lower center", ncols=2)  # fmt: skip  # noqa: E501
    style.head(figure, str(data["about"]))
    return figure
