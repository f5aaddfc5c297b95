"""The files of a finished job that is no run of a protocol: its summary, and its copy in the archive."""

from collections.abc import Collection, Sequence
from pathlib import Path

from dp.output import record, shapes


def read_summary(folder: Path, form: int, keys: Collection[str], name: str, remedy: str) -> dict | None:
    """The summary of a finished job, or None.

    `form`: its `format`. `keys`: what it holds besides. `name`: the command that writes it. `remedy`: what to do about
    a broken file. Raises ValueError for a file that is none.
    """
    path = folder / record.SUMMARY
    if not path.exists():
        return None
    summary = shapes.read_json(path, dict, remedy)
    if summary.get("format") != form or not {*keys} <= {*summary}:
        raise ValueError(f"need {path} as {name} writes it, got another file: move the folder away")
    return summary


def copy_files(folder: Path, measured: Path, names: Sequence[str]) -> Path:
    """Copy these files of a finished job, and last its summary, below `measured`. Returns the copy's folder."""
    copy = measured / folder.name
    copy.mkdir(parents=True, exist_ok=True)
    for name in (*names, record.SUMMARY):  # the summary says that all are there
        record.write_atomic(copy / name, (folder / name).read_bytes())
    return copy
