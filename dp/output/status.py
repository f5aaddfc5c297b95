"""How far runs are, from the files in their folders: rows done, time to go, who works on them, and their audit.

Nothing is built, so a folder is read in milliseconds, also on a machine that could not do the run.
"""

import os
import socket
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from dp.output import record
from dp.output.report import headline
from dp.output.run_files import AuditFile
from dp.output.shapes import read_json
from dp.output.snapshots import PATTERN
from dp.output.starts import Start, newest_starts, read_starts

CONDITIONS = 3  # defended, undefended, null
AUDIT_FILE = "audit.json"


class State(StrEnum):
    """`running`: a process of one of its shards lives on this machine. `stopped`: all were here, and none lives any
    more. `elsewhere`: none lives here, and another machine has begun a shard, so that only the age of its files says
    more. `damaged`: a file cannot be read.
    """

    FINISHED = "finished"
    RUNNING = "running"
    STOPPED = "stopped"
    ELSEWHERE = "elsewhere"
    DAMAGED = "damaged"


class Status(NamedTuple):
    """`seconds_left`: at the speed so far; None if it is not known. `hosts`: the machines that worked on it. `age`:
    seconds since 1970 of the newest file. `attacked`: units with a saved state. `audited`: the entry of its audit.
    `robust`: the headline in percent, if it is finished. `problem`: what cannot be read.
    """

    key: str
    state: State
    done: int = 0
    rows: int = 0
    seconds_left: float | None = None
    hosts: tuple[str, ...] = ()
    newest: float = 0.0
    attacked: int = 0
    audited: dict | None = None
    robust: float | None = None
    problem: str = ""


def is_run(folder: Path) -> bool:
    """True for the folder of a run, finished or not, or of an archived one."""
    return (folder / record.START).exists() or (folder / record.SUMMARY).exists() or any(folder.glob(record.ROWS))


def status_of(folder: Path) -> Status:
    """The status of a run. Damaged files are part of it, so nothing is raised for them."""
    try:
        summary = record.read_summary(folder)
        return _unfinished(folder) if summary is None else _finished(folder, summary)
    except (ValueError, OSError) as error:
        return Status(folder.name, State.DAMAGED, problem=str(error), newest=_newest(folder))


def _finished(folder: Path, summary: dict) -> Status:
    rule, side, _ = headline(summary)
    rows = summary["robust"]["single"]["n"] * len(summary["per_seed"]) * CONDITIONS
    return Status(
        folder.name,
        State.FINISHED,
        rows,
        rows,
        0.0,
        _hosts(read_starts(folder)),
        _newest(folder),
        audited=summary.get("audited") or None,
        robust=summary[side][rule]["value"],
    )


def _unfinished(folder: Path) -> Status:
    rows, starts = record.read_rows(folder), read_starts(folder)
    newest = newest_starts(starts)
    done = Counter(arm for arm, _, _ in rows)
    expected = starts[-1]["rows"] if starts else _planned(folder)
    path = folder / AUDIT_FILE
    return Status(
        folder.name,
        _state(newest),
        len(rows),
        expected,
        _left(record.seconds(folder), done, expected, newest),
        _hosts(starts),
        _newest(folder),
        len(list(folder.glob(PATTERN))),
        read_json(path, AuditFile, "delete it")["entry"] if path.exists() else None,
        problem="; ".join(record.damaged_rows(folder)),
    )


def _planned(folder: Path) -> int:
    """The rows of a run that no start has counted, by its configuration."""
    config = record.read_start(folder)["config"]
    try:
        return config["protocol"]["images"] * len(config["protocol"]["seeds"]) * CONDITIONS
    except (KeyError, TypeError):
        raise ValueError(f"need {folder / record.START} with a protocol, got none: add overwrite=true") from None


def _left(seconds: float, done: Counter[str], expected: int, newest: Sequence[Start]) -> float | None:
    """The seconds to go, at the speed so far, for the workers of all shards but those known to have ended; if all have,
    for all.
    """
    if not newest or not seconds:
        return None
    work, each = newest[-1]["work"], expected / CONDITIONS
    finished = sum(work.get(arm, 0.0) * count for arm, count in done.items())
    left = sum(evaluations * max(0.0, each - done[arm]) for arm, evaluations in work.items())
    workers = sum(start["workers"] for start in [s for s in newest if _lives(s) is not False] or newest)
    return seconds * left / finished / workers if finished else None


def _state(newest: Sequence[Start]) -> State:
    lives = [_lives(start) for start in newest]
    return State.RUNNING if True in lives else State.ELSEWHERE if None in lives else State.STOPPED


def _lives(start: Start) -> bool | None:
    """Whether its process lives; None if another machine has begun it."""
    if start["host"] != socket.gethostname():
        return None
    try:
        os.kill(start["pid"], 0)  # sends nothing
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _hosts(starts: Sequence[Start]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(start["host"] for start in starts))


def _newest(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.iterdir() if path.is_file()), default=0.0)
