"""What a run asks of an engine, and what an engine needs to know of a run."""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from dp.evaluation.evaluate import Evaluation
from dp.evaluation.rows import Event, Unit

Build = Callable[[dict], Evaluation]
OnEvent = Callable[[Event], None]


class Work(NamedTuple):
    """Units to attack, score and save.

    `build`: makes the evaluation of a worker from a configuration; `config`: of the run; `folder`: of the run;
    `shard`: part of the names of its files, such as `1of2`.
    """

    build: Build
    config: dict
    units: Sequence[Unit]
    folder: Path
    shard: str


class Engine(Protocol):
    """Runs the units of a run in any order and anywhere. The rows are the same."""

    def workers(self, config: dict) -> int:
        """How many units can be under way at once now. Raises ValueError or OSError if the engine cannot work."""
        ...

    def run(self, work: Work, evaluation: Evaluation, on_event: OnEvent) -> None:
        """Do all units. `evaluation`: the one that this process has built; the engine may free its networks.

        `on_event` gets the progress. A KeyboardInterrupt or SystemExit saves the states of units that are under way.
        Raises the ValueError or OSError of a worker, and OSError if workers die.
        """
        ...


def sendable(error: BaseException) -> Exception:
    """An error as a worker sends it: a ValueError or OSError of one line, or a RuntimeError with the traceback.

    Not every subclass of these can be pickled.
    """
    if isinstance(error, ValueError | OSError):
        return (ValueError if isinstance(error, ValueError) else OSError)(str(error))
    return RuntimeError(f"in a worker process:\n{''.join(traceback.format_exception(error))}")
