"""Figures 1 and 5: where the classifier looks, and what hetero makes of an image, clean and attacked."""

from typing import Any

from matplotlib.figure import Figure

from dp.figures import style
from dp.figures.stored import Data, lines

COLUMNS = ("image", "attention", "mask", "noised, t_l", "noised, t_s", "purified")
ROWS = (("digits", 0), ("digits", 1), ("canvas", 0), ("canvas", 1))
SIDES = ("clean", "attacked")


def draw(data: Data) -> Figure:
    """A row for each image; on the left the clean one, on the right the attacked one.

    `<dataset>_<side>` (B,6,H,W,3) uint8 are the pictures in the order of `COLUMNS`; `<dataset>_<side>_words` (B,) are
    the class before, the share of the mask and the class after, with bars between them.
    """
    figure = Figure(figsize=(12.5, 5.0), layout="constrained")
    halves: Any = figure.subfigures(1, 2, wspace=0.03)
    for half, side in zip(halves, SIDES, strict=True):
        half.suptitle(side)
        axes = half.subplots(len(ROWS), len(COLUMNS))
        for line, (dataset, at) in zip(axes, ROWS, strict=True):
            words = lines(data[f"{dataset}_{side}_words"])[at].split("|")
            below = [f"seen as {words[0]}", "", words[1], "", "", f"seen as {words[2]}"]
            for axis, column, picture, text in zip(line, COLUMNS, data[f"{dataset}_{side}"][at], below, strict=True):
                shown = picture[..., 0] if column == "attention" else picture
                axis.imshow(shown, cmap=style.MAP, vmin=0, vmax=255, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                axis.set_xlabel(text, fontsize=8, labelpad=2)
        for axis, column in zip(axes[0], COLUMNS, strict=True):
            axis.set_title(column, fontsize=9)
    style.head(figure, str(data["about"]))
    return figure
