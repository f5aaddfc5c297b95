"""Read what the page shows of a run: from the folder of the run, or from that of an archived run."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dp.output import archived, record, rescore
from dp.output.iterations import Curve, read_iterations
from dp.output.rescore import Saved
from dp.output.run_files import is_archived


class Run(NamedTuple):
    """A finished run. `groups`: rows with attacked images; none of an archived run, which keeps only `rows`;
    `iterations`: the loss over the iterations, by condition; none of an older run.
    """

    key: str
    folder: Path
    summary: dict
    rows: list[dict]
    groups: list[Saved]
    iterations: dict[str, Curve]


def folders_of(given: Sequence[Path]) -> list[Path]:
    """The folders of runs among and directly below the given ones, each key once: the first that is found.

    Raises ValueError for a folder that does not exist and for a folder without a run.
    """
    found: dict[str, Path] = {}
    for folder in given:
        if not folder.is_dir():
            raise ValueError(f"need a folder of a run or of runs, got {folder}, and there is no such folder")
        its = [folder] if _holds_run(folder) else sorted(p for p in folder.iterdir() if p.is_dir() and _holds_run(p))
        if not its:
            raise ValueError(f"need a folder with finished runs, got {folder} without one: dp run makes one")
        for each in its:
            found.setdefault(each.name, each)
    return list(found.values())


def _holds_run(folder: Path) -> bool:
    return (folder / record.SUMMARY).is_file() and ((folder / record.IMAGES).exists() or is_archived(folder))


def read(folder: Path) -> Run:
    """The run in a folder. Raises ValueError in one line for a damaged one."""
    if is_archived(folder):
        summary = record.read_summary(folder)
        assert summary is not None, "folders_of has found it"
        return Run(folder.name, folder, summary, archived.read_rows(folder), [], read_iterations(folder))
    summary, groups = rescore.finished(folder), rescore.saved(folder)
    rows = [dict(row) for group in groups for row in group.rows]
    return Run(folder.name, folder, summary, rows, groups, read_iterations(folder))
