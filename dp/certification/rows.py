"""A row for each image, as a line of a TSV file that survives a kill at any moment."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from dp.output.locks import take_lock
from dp.output.record import write_atomic
from dp.output.shapes import contents


@dataclass(frozen=True, order=True)
class Row:
    """What was certified of an image.

    `id`: in the full test set. `predicted`: the class, or -1 for an abstention. `radius`: l2, images in [0,1].
    `count`: how many of the `n` samples have the selected class. `correct`: 1 if the prediction is the label.
    `evaluations`: network calls of one image; padding counts.
    """

    id: int
    label: int
    predicted: int
    radius: float
    count: int
    n: int
    correct: int
    evaluations: int

    @property
    def line(self) -> str:
        """The row as a line of text. The radius has all of its digits."""
        return "\t".join(map(repr, astuple(self))) + "\n"


TYPES = Row.__annotations__  # by column
HEADER = "\t".join(TYPES) + "\n"
PATTERN = "rows-*.tsv"  # of the names of the shards' files
ALL = "certified.tsv"  # the rows of a finished certification, sorted by id
PATIENCE = 10.0  # seconds to wait for another writer of a shard


def read(path: Path) -> list[Row]:
    """The whole rows of a file. Its header and what a kill has torn are left out."""
    lines = contents(path, "start again").decode(errors="replace").split("\n")[:-1] if path.exists() else []
    return [row for row in map(parsed, lines) if row is not None]


def parsed(line: str) -> Row | None:
    """The row of a line without its end, or None if it is no row or contradicts itself."""
    cells = line.split("\t")
    try:
        row = Row(*(kind(cell) for kind, cell in zip(TYPES.values(), cells, strict=True)))
    except ValueError:
        return None
    whole = row.line == line + "\n"  # a torn and continued line may still be made of numbers
    return row if whole and row.correct == int(row.predicted == row.label) else None


def read_all(folder: Path) -> dict[int, Row]:
    """The rows that all shards of a folder have written, by id."""
    return {row.id: row for path in sorted(folder.glob(PATTERN)) for row in read(path)}


def text(rows: Iterable[Row]) -> str:
    """The rows as the text of a file, in this order."""
    return HEADER + "".join(row.line for row in rows)


def merge(folder: Path, ids: Sequence[int]) -> list[Row]:
    """Write the rows of these images to certified.tsv, sorted by id, and return them.

    The file is the same, byte for byte, for any order, any shards, and after any interruption.
    """
    rows = read_all(folder)
    ordered = [rows[i] for i in sorted(ids)]
    write_atomic(folder / ALL, text(ordered).encode())
    return ordered


class Writer:
    """Appends the rows of a shard, each flushed to the disk. Use it as a context manager.

    `label`: of the shard, part of the file's name. Torn lines of an earlier start are removed first. Raises OSError if
    another process writes the same shard.
    """

    def __init__(self, folder: Path, label: str):
        self.path = folder / f"rows-{label}.tsv"
        self.lock = (folder / f".lock-{label}").open("w")
        take_lock(self.lock, f"{folder} (shard {label})", PATIENCE)
        whole = text(read(self.path)).encode()
        if not self.path.exists() or self.path.read_bytes() != whole:
            write_atomic(self.path, whole)
        self.file = self.path.open("ab")

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
        self.lock.close()

    def write(self, row: Row) -> None:
        """Append a row. A kill can only leave an incomplete last line."""
        self.file.write(row.line.encode())
        self.file.flush()
        os.fsync(self.file.fileno())
