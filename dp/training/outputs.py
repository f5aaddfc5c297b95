"""What judges write: tables and pictures."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch.nn.functional as F
from matplotlib.image import imsave
from torch import Tensor

from dp.output.record import write_atomic


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[float | str]]) -> None:
    """Write a csv file with one line of names and one line for each row. Numbers have six digits."""
    lines = [columns, *([value if isinstance(value, str) else f"{value:.6g}" for value in row] for row in rows)]
    write_atomic(path, "".join(",".join(line) + "\n" for line in lines).encode())


def grid(x: Tensor, columns: int, times: int) -> Tensor:
    """One picture (rows,columns,3) of images (B,C,H,W) in [0,1] in white frames, enlarged `times` times.

    White images fill the last row.
    """
    x = F.pad(x.expand(-1, 3, -1, -1), (0, 1, 0, 1), value=1.0)
    x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -len(x) % columns), value=1.0)
    tiles = x.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)  # (rows,H,columns,W,3)
    return tiles.flatten(2, 3).flatten(0, 1).repeat_interleave(times, 0).repeat_interleave(times, 1)


def write_images(path: Path, x: Tensor, columns: int = 8, times: int = 3) -> None:
    """Write images (B,C,H,W) in [0,1] as one png."""
    imsave(path, grid(x.cpu(), columns, times).numpy())
