"""What figures are made of: results/measured/figures/<name>.npz, small enough for git."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

FOLDER = Path("results/measured/figures")
MOST = 500_000  # bytes of one file
COMMAND = "python scripts/studies/figure_data.py"

Data = Mapping[str, np.ndarray]


def path_of(name: str, folder: Path = FOLDER) -> Path:
    """The file of a figure."""
    return folder / f"{name}.npz"


def todo(name: str) -> str:
    """How the file of a figure comes, in words."""
    return f"in a checkout, {COMMAND} {name} --write measures it"


def read(name: str, folder: Path = FOLDER) -> dict[str, np.ndarray]:
    """The arrays of a figure. Raises ValueError in one line where its file is missing or torn."""
    path = path_of(name, folder)
    if not path.exists():
        raise ValueError(f"need {path}, got no such file: {todo(name)}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"need {path} as the study writes it, got {error}: {todo(name)}") from None


def packed(arrays: Data) -> bytes:
    """The arrays as the bytes of an npz, the same for the same arrays. Raises ValueError for a file that is too large.

    float64 becomes float32 but for scalars, which is more than a figure shows.
    """
    file = io.BytesIO()
    narrow = {key: a.astype(np.float32) if a.dtype == np.float64 and a.ndim else a for key, a in arrays.items()}
    np.savez_compressed(file, **narrow)  # pyright: ignore[reportArgumentType]
    if file.tell() > MOST:
        raise ValueError(f"need at most {MOST} bytes for a figure, got {file.tell()}: keep less of it")
    return file.getvalue()


def lines(array: np.ndarray) -> list[str]:
    """An array of text as a list."""
    return [str(text) for text in array.tolist()]
