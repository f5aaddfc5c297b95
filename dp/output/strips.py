"""Pictures of images in rows, each with words above it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import Tensor


class Strip(NamedTuple):
    """A row of the picture. `name`: of the row; `images`: n images (C,H,W) in [0,1]; `words`: n texts below them."""

    name: str
    images: Tensor | Sequence[Tensor]
    words: Sequence[str]


def draw(path: Path, strips: Sequence[Strip], title: str) -> None:
    """Save a picture with a row for each strip."""
    columns = max(len(strip.images) for strip in strips)
    figure = Figure(figsize=(1.35 * columns, 1.75 * len(strips) + 0.4), layout="constrained")
    axes = figure.subplots(len(strips), columns, squeeze=False)
    for row, strip in zip(axes, strips, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, image, words in zip(row, strip.images, strip.words, strict=False):
            shown = image.permute(1, 2, 0).numpy()
            axis.imshow(shown.squeeze(2) if shown.shape[2] == 1 else shown, cmap="gray", vmin=0, vmax=1)
            axis.set_title(words, fontsize=7)
        row[0].text(
            -0.08, 0.5, strip.name, fontsize=8, rotation=90, va="center", ha="right", transform=row[0].transAxes
        )
    figure.suptitle(title, fontsize=8)
    figure.savefig(path, dpi=150)
