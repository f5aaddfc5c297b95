"""Read what the page shows of a run: from the folder of the run, or from that of an archived run."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dp.output import archived, record, rescore
from dp.output.rescore import Saved
from dp.output.run_files import is_archived
from dp.page.pictures import Shown
from dp.runs.build import defense, in_precision
from dp.runs.compose import make, with_plugins
from dp.runs.machine import device_of
from dp.subset import Subset
from dp.weights.needed import missing


class Run(NamedTuple):
    """A finished run. `groups`: rows with attacked images; none of an archived run, which keeps only `rows`."""

    key: str
    folder: Path
    summary: dict
    rows: list[dict]
    groups: list[Saved]


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
        return Run(folder.name, folder, summary, archived.read_rows(folder), [])
    summary, groups = rescore.finished(folder), rescore.saved(folder)
    return Run(folder.name, folder, summary, [dict(row) for group in groups for row in group.rows], groups)


def shown(run: Run) -> Shown | str:
    """What the pictures of a run are made of, or why there are none, in a sentence."""
    config = with_plugins(run.summary["config"], run.summary["config"]["plugins"]["folders"])
    absent = missing(config)
    if absent:
        return f"The page has no pictures of this run: {absent[0].file} is not on this machine (dp fetch gets it)."
    device = device_of(config)
    subset: Subset = make(config["dataset"]["loader"], modules=config["plugins"]["modules"])
    caveats, samples = run.summary["caveats"], run.summary["robust"]["vote"]["draws"]
    model = in_precision(defense(config, device), config.get("scored_dtype", "float32"))
    lanes = config["dataset"]["lanes"]
    ids = subset.ids.tolist()
    return Shown(model, subset.x, ids, config["purifier"], samples, caveats["nfe"], lanes, config.get("rng", 1))
