"""The runs that fill the cells of the paper's tables: found by their key, whole, by seeds, or begun."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dp.output import record
from dp.output.archived import rows_in
from dp.runs.compose import composed
from dp.runs.keys import run_key
from dp.statistics import metrics

FEWER = (256, 128, 64)  # images of a smaller run that stands in a cell until the whole one is there


class Found(NamedTuple):
    """What there is of a cell's run.

    `summary`: the figures, configuration and caveats of the run; or of those of its seeds that are runs of their own;
    or of the same run with fewer images; None if there is nothing. `missing`: what is missing, in words; empty for a
    whole run.
    """

    summary: dict | None
    missing: str


def find(command: str, folder: str, note: str, folders: Sequence[Path]) -> Found:
    """The run of a cell in `folders`, which hold the folders of runs; the first that has the whole run counts.

    `command`, `folder` and `note` are those of a line of results/published/cells.csv. A run is looked up by its key, so
    that one with other settings is no match. Shards write into one folder, and count as begun until the last one ends.
    A run that cannot be read is missing, with the reason.
    """
    if not command:
        return Found(None, note)
    if not any(any(each.glob(f"{folder}-*")) for each in folders):
        return Found(None, "not run")
    config = composed(*shlex.split(command))
    images, faults = config["protocol"]["images"], []
    for count in (images, *(n for n in FEWER if n < images)):
        found = _of_images(_with_images(config, count), folders, faults)
        if found is not None:
            less = [f"{count} of {images} images"] if count < images else []
            less += [found.missing] if found.missing else []
            return Found(found.summary, f"only {' and '.join(less)}" if less else "")
    begun = max((len(record.read_rows(each / run_key(config))) for each in folders), default=0)
    return Found(None, "; ".join(faults) or (f"begun, {begun} rows: the command goes on" if begun else "not run"))


def _of_images(config: dict, folders: Sequence[Path], faults: list[str]) -> Found | None:
    """The run of a configuration, or the runs of its single seeds; `missing` counts the seeds that are there."""
    whole = _first(run_key(config), folders, faults)
    if whole is not None:
        return Found(whole, "")
    seeds = config["protocol"]["seeds"]
    parts = {seed: part for seed in seeds if (part := _first(_key_of_seed(config, seed), folders, faults, rows=True))}
    if not parts:
        return None
    return Found(_joined(parts), "" if len(parts) == len(seeds) else f"{len(parts)} of {len(seeds)} seeds")


def _key_of_seed(config: dict, seed: int) -> str:
    return run_key(config | {"protocol": config["protocol"] | {"seeds": [seed]}})


def _with_images(config: dict, images: int) -> dict:
    """The configuration with `images` images, also where its dataset's loader has their number."""
    loader = config["dataset"]["loader"]
    dataset = config["dataset"] | {"loader": loader | {key: images for key in ("images",) if key in loader}}
    return config | {"protocol": config["protocol"] | {"images": images}, "dataset": dataset}


def _first(key: str, folders: Sequence[Path], faults: list[str], rows: bool = False) -> dict | None:
    """The summary of the first finished run of this key, with its rows under `rows` if asked.

    What cannot be read is appended to `faults`.
    """
    for folder in folders:
        try:
            summary = record.read_summary(folder / key)
            if summary is not None:
                return summary | ({"rows": rows_in(folder / key)} if rows else {})
        except ValueError as error:
            faults.append(f"damaged: {error}")
    return None


def _joined(parts: Mapping[int, dict]) -> dict:
    """The summary of all seeds from those of single seeds: a row does not depend on the other seeds of its run."""
    first = next(iter(parts.values()))
    protocol = first["config"]["protocol"]
    rows = [row for part in parts.values() for row in part["rows"]]
    figures = metrics.summarize(rows, protocol["votes"], ties=protocol["ties"])
    config = first["config"] | {"protocol": protocol | {"seeds": sorted(parts)}}
    unaudited = any(not part["audited"] for part in parts.values())
    return {**first, **figures, "config": config, "audited": None if unaudited else first["audited"]}
