"""The driver of a run on Ray. It hands units to workers and alone writes what comes back, so that no file is locked.

Workers may come and go. The unit of a worker that dies goes back to the queue with its newest saved state.
"""

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dp.evaluation.rows import Event, Unit
from dp.evaluation.snapshot import Packed
from dp.output.console import console
from dp.output.record import Writer
from dp.output.snapshots import Snapshots, unused
from dp.runs.engines.interface import OnEvent, Work
from dp.runs.engines.ray_worker import Done, News, Started, Worker
from dp.runs.keys import run_key
from dp.runs.signals import undisturbed
from dp.runs.sources import sources_hash

PULSE = 1.0  # seconds between two questions to a worker
HIRE = 2.0  # seconds between two looks for room in the cluster, whose numbers lag behind
PATIENCE = 30.0  # seconds in which workers send their states when the run is stopped
DEATHS = 3  # of workers on one unit without any progress, after which it is the unit's fault


class Kind(NamedTuple):
    """A kind of worker: the resource of the cluster that it takes one of, how Ray says so, and its configuration."""

    resource: str
    options: dict[str, Any]
    config: dict[str, Any]


@dataclass(eq=False)
class Member:
    """A worker of the crew. `call`: what it is doing; `unit`: the one it has; `news`: a question without an answer yet.

    `asked`, `saved`: when it was last asked for news, and for its state.
    """

    actor: Any
    call: Any
    unit: Unit | None = None
    news: Any = None
    asked: float = 0.0
    saved: float = 0.0


class Driver:
    """Does the units of `work` on the connected cluster. `steps`: of the attack, under each condition."""

    def __init__(self, work: Work, kind: Kind, steps: Mapping[str, int], on_event: OnEvent):
        import ray

        self.ray, self.work, self.kind, self.steps, self.on_event = ray, work, kind, steps, on_event
        self.config = {**work.config, **kind.config}
        self.code, self.every = sources_hash(work.config), float(work.config["save_every"])
        self.snapshots = Snapshots(work.folder, run_key(work.config), self.code)
        self.waiting, self.crew = deque(work.units), list[Member]()
        self.deaths: Counter[Unit | None] = Counter()  # since the last progress; None: of workers that were starting
        self.hired, self.pulse, self.said = -HIRE, min(PULSE, self.every), False
        limit = work.config["workers"]
        self.limit = len(work.units) if limit == "auto" else limit

    def run(self) -> None:
        """Until all units are done. Raises the error of a worker, and OSError if workers die without any progress."""
        self.writer = Writer(self.work.folder, f"{self.work.shard}-0")
        try:
            while self.waiting or any(member.unit for member in self.crew):
                self._hire()
                self._ask()
                self._listen(self.pulse)
        except (KeyboardInterrupt, SystemExit):
            with undisturbed():
                self._save_states()
            raise
        finally:
            for member in self.crew:
                self.ray.kill(member.actor)
            self.writer.close()

    def _hire(self) -> None:
        """Start workers where the cluster has room, also on machines that have joined since."""
        now = time.monotonic()
        if now - self.hired < HIRE:
            return
        self.hired = now
        room = int(self.ray.available_resources().get(self.kind.resource, 0))
        units = len(self.waiting) + sum(member.unit is not None for member in self.crew)
        for _ in range(min(room, min(self.limit, units) - len(self.crew))):
            actor = self.ray.remote(max_concurrency=2, **self.kind.options)(Worker).remote()
            self.crew.append(Member(actor, actor.start.remote(self.work.build, self.config, str(Path.cwd()))))
        if not self.crew and not self.said:
            self.said = True
            console.print(f"waiting: the Ray cluster has no free {self.kind.resource} now")

    def _ask(self) -> None:
        """Ask for news of every unit, and for the states that are due."""
        now = time.monotonic()
        for member in self.crew:
            if member.unit is not None and member.news is None and now - member.asked >= self.pulse:
                due = now - member.saved >= self.every
                member.news, member.asked = member.actor.news.remote(due), now
                member.saved = now if due else member.saved

    def _listen(self, patience: float) -> None:
        """Take the answers that arrive within so many seconds after the first."""
        calls = {member.call: member for member in self.crew if member.call is not None}
        news = {member.news: member for member in self.crew if member.news is not None}
        if not calls and not news:
            time.sleep(patience)
            return
        ready, _ = self.ray.wait([*calls, *news], num_returns=1, timeout=patience)
        for reference in ready:
            member = calls.get(reference) or news[reference]
            try:
                answer = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                self._lost(member, error)
                continue
            if isinstance(answer, Exception):
                raise answer
            if reference in news:
                member.news = None
                self._heard(member, answer)
            else:
                member.call = None
                self._answered(member, answer)

    def _heard(self, member: Member, news: News) -> None:
        """Save and show the news."""
        self._keep(member, news)
        if news.event is not None and news.unit == member.unit:
            self.on_event(news.event)

    def _keep(self, member: Member, news: News) -> None:
        """Save the state, if there is one of the unit that the worker still has."""
        if news.state is not None and member.unit is not None and news.unit == member.unit:
            self.snapshots.write_packed(member.unit, news.state)
            self.deaths.pop(member.unit, None)

    def _answered(self, member: Member, answer: Started | Done) -> None:
        """Write the results of a worker, if it has some, and give it a unit."""
        if isinstance(answer, Started):
            if answer.code != self.code:
                raise ValueError(
                    f"need one code, plug-ins and weights on all machines, got others on {answer.host} "
                    f"({answer.code[:8]}, here {self.code[:8]}): install the same there"
                )
            self.deaths.pop(None, None)
        else:
            unit, member.unit = answer.group.unit, None
            if answer.unused is not None:
                console.print(unused(self.snapshots.path(unit), answer.unused))
            self.writer.write(answer.group)
            self.snapshots.drop(unit)
            self.on_event(Event(unit, self.steps[unit.arm], self.steps[unit.arm], answer.group.rows))
        if not self.waiting:  # its place is free for others
            self.crew.remove(member)
            self.ray.kill(member.actor)
            return
        unit = self.waiting.popleft()
        member.unit, member.saved = unit, time.monotonic()
        member.call = member.actor.work.remote(unit, self._saved(unit))

    def _saved(self, unit: Unit) -> Packed | None:
        try:
            return self.snapshots.read(unit)
        except ValueError as error:
            console.print(unused(self.snapshots.path(unit), error))
            return None

    def _lost(self, member: Member, error: Exception) -> None:
        """A worker has died. Its unit goes back to the queue, and `_hire` replaces the worker."""
        self.crew.remove(member)
        self.deaths[member.unit] += 1
        if self.deaths[member.unit] >= DEATHS:
            raise OSError(
                f"{DEATHS} workers died one after another on the same work, perhaps out of memory: finished rows are "
                f"saved; the last one: {' '.join(str(error).split())}"
            )
        if member.unit is not None:
            self.waiting.appendleft(member.unit)

    def _save_states(self) -> None:
        """Ask every worker for the state of its unit, and write those that arrive in time."""
        asked = {member.actor.news.remote(True): member for member in self.crew if member.unit is not None}
        ready = self.ray.wait([*asked], num_returns=len(asked), timeout=PATIENCE)[0] if asked else []
        for reference in ready:
            try:
                self._keep(asked[reference], self.ray.get(reference))
            except self.ray.exceptions.RayError:  # a worker that has died keeps its earlier state
                continue
