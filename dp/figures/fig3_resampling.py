"""Figure 3: the seam of an inpainting over U, by RePaint's multi-step and by the paper's single-step resampling."""

from typing import Any

from matplotlib.figure import Figure

from dp.figures import style
from dp.figures.stored import Data

FORMS = ("multi", "single")


def draw(data: Data) -> Figure:
    """Left: how visible the border of the hole is, over U. Right: two images, by form and U.

    `jumps` (U,); `<form>_seam` (U,3) with intervals; `<form>_pictures` (U,2,H,W,3) uint8;
    `<form>_nfe` (U,); `original` (2,H,W,3) and `original_seam` (3,).
    """
    jumps = data["jumps"].tolist()
    figure = Figure(figsize=(12.5, 5.2), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1, 1.6))
    left, right = parts
    axis = left.subplots()
    for k, form in enumerate(FORMS):
        style.errorbars(axis, [j + 0.15 * k for j in jumps], data[f"{form}_seam"], k + 1, label=f"{form}-step")
        for jump, nfe, value in zip(jumps, data[f"{form}_nfe"], data[f"{form}_seam"][:, k + 1], strict=True):
            axis.annotate(f"{nfe}", (jump, value), (4, 4), textcoords="offset points", fontsize=7, color=style.GRAY)
    value, low, high = data["original_seam"]
    axis.axhspan(low, high, color=style.GRAY, alpha=0.15, linewidth=0)
    axis.axhline(value, color=style.GRAY, linewidth=1, linestyle=":", label="the original images")
    axis.set(xlabel="U", ylabel="step across the border / steps beside it", xticks=jumps)
    axis.legend(loc="upper right", title="numbers: network evaluations")
    axes = right.subplots(4, len(jumps) + 1)
    for k, form in enumerate(FORMS):
        for image in range(2):
            line = axes[2 * image + k]
            pictures = [data["original"][image], *data[f"{form}_pictures"][:, image]]
            for one, picture in zip(line, pictures, strict=True):
                one.imshow(picture, interpolation="nearest")
                one.set(xticks=[], yticks=[])
                one.spines[:].set_visible(False)
            line[0].set_ylabel(f"{form}-step")
    for one, title in zip(axes[0], ["original", *(f"U = {jump}" for jump in jumps)], strict=True):
        one.set_title(title)
    style.head(figure, str(data["about"]))
    return figure
