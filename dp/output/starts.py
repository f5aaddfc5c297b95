"""Who has worked on a run: a line for every start of its command."""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from dp.output import record, shapes

STARTS = "starts.jsonl"


class Start(TypedDict):
    """A line of starts.jsonl. `at`: seconds since 1970; `rows`: of the whole run; `work`: network evaluations that an
    image takes under each condition.
    """

    host: str
    pid: int
    at: float
    shard: str
    workers: int
    rows: int
    work: dict[str, float]


def note_start(folder: Path, shard: str, workers: int, rows: int, work: Mapping[str, float]) -> None:
    """Add the line of this process to the folder of a run. Raises ValueError for a directory in the file's place."""
    if (folder / STARTS).is_dir():
        raise ValueError(f"need the file {folder / STARTS}, got a directory: move it away")
    who = {"host": socket.gethostname(), "pid": os.getpid(), "at": round(time.time(), 1)}
    record.append(folder / STARTS, [{**who, "shard": shard, "workers": workers, "rows": rows, "work": dict(work)}])


def read_starts(folder: Path) -> list[Start]:
    """The whole lines, oldest first; none of a run without the file. Raises ValueError for a directory in its place."""
    path = folder / STARTS
    return shapes.read_lines(path, Start, "run again")[1] if path.exists() else []


def newest_starts(starts: Sequence[Start]) -> list[Start]:
    """Of starts, oldest first, the newest of each shard, the latest last. Shards of a run that was divided otherwise
    before its latest start are left out.
    """
    newest: dict[str, Start] = {}
    for start in starts:
        newest.pop(start["shard"], None)  # so that it comes last
        newest[start["shard"]] = start
    return [start for start in newest.values() if _parts(start) == _parts(starts[-1])]


def _parts(start: Start) -> str:
    return start["shard"].partition("/")[2]
