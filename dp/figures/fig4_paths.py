"""Figure 4: t-SNE of features along the path of purification."""

from matplotlib.figure import Figure

from dp.figures import style
from dp.figures.stored import Data, lines

DIGITS = tuple(f"${k}$" for k in range(10))  # markers


def draw(data: Data) -> Figure:
    """A panel for each defense: the clean images in gray, by their class, and the path of each attacked image.

    `background` (B,2) with `classes` (B,); `places` (P,2) with `paths` (P,3): defense, image and step. Step 0 is the
    clean image, 1 the attacked one, and the last one the purified one.
    """
    names = lines(data["names"])
    figure, (axes,) = style.sheet(13, 4.6, 1, len(names), sharex=True, sharey=True)
    for m, (axis, name) in enumerate(zip(axes, names, strict=True)):
        for digit, marker in enumerate(DIGITS):
            x, y = data["background"][data["classes"] == digit].T
            axis.plot(x, y, marker=marker, color="#9a9a9a", linestyle="none", markersize=4.5, markeredgewidth=0.3)
        for i, label in enumerate(data["labels"].tolist()):
            own = (data["paths"][:, 0] == m) & (data["paths"][:, 1] == i)
            x, y = data["places"][own].T
            look = style.series(i)
            axis.plot(x[1:], y[1:], **{**look, "marker": "."}, linewidth=1.2, label=f"an attacked {label}")
            axis.plot(x[0], y[0], marker="*", color=look["color"], markersize=13, markeredgecolor="white")
            axis.plot(x[1], y[1], marker="X", color=look["color"], markersize=9, markeredgecolor="white")
            axis.plot(x[-1], y[-1], marker="o", color=look["color"], markersize=9, mfc="white", markeredgewidth=1.8)
        axis.set(title=name, xticks=[], yticks=[])
        axis.grid(False)
    handles, words = axes[0].get_legend_handles_labels()
    for marker, text in (("*", "clean"), ("X", "attacked"), ("o", "purified")):
        look = {"color": style.GRAY, "marker": marker, "linestyle": "none", "markersize": 9}
        handles += axes[0].plot([], [], **look, mfc="white" if marker == "o" else style.GRAY)
        words.append(text)
    figure.legend(handles, words, loc="outside lower center", ncols=6)
    style.head(figure, str(data["about"]))
    return figure
