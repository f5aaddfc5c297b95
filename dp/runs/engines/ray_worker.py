"""A worker of the engine `ray`: it builds the evaluation once and works on the units it is given. It writes nothing."""

import os
import socket
from collections.abc import Callable
from typing import NamedTuple

import torch

from dp.evaluation.evaluate import Evaluation
from dp.evaluation.loss_curve import Point
from dp.evaluation.rows import Event, Group, Unit
from dp.evaluation.snapshot import Packed, Snapshot, packed
from dp.runs.engines.interface import Build, sendable
from dp.runs.sources import sources_hash


class Started(NamedTuple):
    """A worker that is ready. `code`: the hash of its code; `host`, `pid`: its machine and process."""

    code: str
    host: str
    pid: int


class Done(NamedTuple):
    """The results of a unit. `unused`: why its saved state was not used, if so."""

    group: Group
    unused: ValueError | None = None


class News(NamedTuple):
    """What a worker tells of the unit that is under way: its newest event and, if asked for, its state."""

    unit: Unit | None
    event: Event | None
    state: Packed | None


def told(method: Callable) -> Callable:
    """The method with its errors as answers. Raised in an actor, they would arrive as Ray's own."""

    def answer(*args):
        try:
            return method(*args)
        except Exception as error:
            return sendable(error)

    return answer


class Worker:
    """The actor. Ray calls `news` in a second thread while `work` is under way."""

    def __init__(self):
        self.evaluation: Evaluation | None = None
        self.unit: Unit | None = None
        self.event: Event | None = None
        self.snapshot: Snapshot | None = None

    def start(self, build: Build, config: dict, folder: str) -> Started | Exception:
        """Build the evaluation. `folder`: the driver's working folder, for relative paths.

        Errors of this method and of `work` are returned, as `sendable` makes them.
        """
        return told(self._start)(build, config, folder)

    def work(self, unit: Unit, saved: Packed | None) -> Done | Exception:
        """Attack and score a unit, from its saved state on if there is one."""
        return told(self._work)(unit, saved)

    def news(self, with_state: bool) -> News:
        """The news of the unit that is under way."""
        unit, event, snapshot = self.unit, self.event, self.snapshot
        return News(unit, event, packed(snapshot) if with_state and snapshot is not None else None)

    def _start(self, build: Build, config: dict, folder: str) -> Started:
        os.chdir(folder)
        self.evaluation = build(config)
        return Started(sources_hash(config), socket.gethostname(), os.getpid())

    def _work(self, unit: Unit, saved: Packed | None) -> Done:
        assert self.evaluation is not None
        torch.set_num_threads(1)  # of this thread; a sum's last bits depend on it
        begun, unused = None, None
        try:
            begun = None if saved is None else self.evaluation.restored(unit, saved)
        except ValueError as error:
            unused = ValueError(str(error))
        self.event, self.snapshot, self.unit = None, None, unit

        def on_step(step: int, steps: int, point: Point) -> None:
            self.event = Event(unit, step, steps, point=point)

        def keep(snapshot: Snapshot) -> None:
            self.snapshot = snapshot

        try:
            return Done(self.evaluation.run(unit, on_step, begun, keep), unused)
        finally:
            self.unit = None
