"""Progress of a run for a person: a bar on a terminal, plain lines elsewhere, time to go, robust accuracy so far."""

import time
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dp.evaluation.evaluate import Evaluation
from dp.evaluation.rows import Event, Row, Unit
from dp.output.report import clock
from dp.output.tracking import Tracker


class Bar:
    """Work done out of `total`, in any unit: a bar on a terminal, elsewhere a plain line every ten seconds. A context
    manager; call it with the work done so far and a line about it.

    Both say the time to go; an estimate of over an hour is said once, in words.
    """

    def __init__(self, console: Console, total: float):
        self.console, self.total = console, total
        self.began = self.said = time.monotonic()
        self.announced = False
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
        )
        self.bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self.task = self.bar.add_task("starting", total=total) if self.bar else None

    def __enter__(self) -> "Bar":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, done: float, line: str) -> None:
        elapsed = time.monotonic() - self.began
        left = elapsed * (self.total - done) / done if done else None
        to_go = "time to go not known yet" if left is None else f"{clock(left)} to go"
        if not self.announced and left is not None and elapsed > 20:
            self.announced = True
            if left > 3600:
                self.console.print(f"estimate: {to_go}")
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=done, description=line)
        elif time.monotonic() - self.said > 10:
            self.said = time.monotonic()
            self.console.print(f"{100 * done / self.total:3.0f} %, {to_go}: {line}")


class Display:
    """A run's bar: call it with every event; use it as a context manager. `rows`: what an earlier start has judged
    already. Time to go comes from a cost per unit in network evaluations.
    """

    def __init__(
        self, console: Console, evaluation: Evaluation, units: Sequence[Unit], rows: Iterable[Row], tracker: Tracker
    ):
        self.evaluation, self.tracker = evaluation, tracker
        self.done = 0.0
        self.part: dict[Unit, float] = {}
        self.verdicts: list[tuple[bool, bool]] = []  # single, vote
        self.count(rows)
        self.bar = Bar(console, sum(sum(self.cost(unit)) for unit in units))

    def __enter__(self) -> "Display":
        self.bar.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self.bar.__exit__()

    def __call__(self, event: Event) -> None:
        attack, score = self.cost(event.unit)
        if event.rows is None:
            self.part[event.unit] = attack * event.step / max(1, event.steps)
        else:
            self.part.pop(event.unit, None)
            self.done += attack + score
            self.count(event.rows)
            if event.unit.arm == "defended":
                single, vote = self.robust()
                self.tracker.log({"robust/single": single, "robust/vote": vote, "images": len(self.verdicts)})
        self.show(event)

    def cost(self, unit: Unit) -> tuple[float, float]:
        """Work of attacking and of scoring a unit, per image; a gradient counts as three evaluations of the defence."""
        attack = self.evaluation.arms[unit.arm].attack
        draws, votes = attack.steps * attack.samples, self.evaluation.votes
        if unit.arm == "undefended":
            return 0.3 * attack.steps, 0.3
        if unit.arm == "null":
            return (draws if attack.select == "best" else 0.01 * attack.steps), votes
        return 3.0 * draws, 2.0 * votes

    def count(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if row["arm"] == "defended":
                self.verdicts.append((row["adv"][0] == row["label"], row["adv_vote"] == row["label"]))

    def robust(self) -> tuple[float, float]:
        """Percent of attacked images still classified right, by a single draw and by the vote, so far."""
        n = len(self.verdicts)
        return 100 * sum(s for s, _ in self.verdicts) / n, 100 * sum(v for _, v in self.verdicts) / n

    def show(self, event: Event) -> None:
        seeds, ids = list(self.evaluation.seeds), event.unit.ids
        line = f"seed {event.unit.seed} ({seeds.index(event.unit.seed) + 1}/{len(seeds)}), {event.unit.arm}"
        line += f", {len(ids)} images from id {ids[0]}, iteration {event.step}/{event.steps}"
        if self.verdicts:
            line += f", robust so far {self.robust()[0]:.1f} % of {len(self.verdicts)}"
        self.bar(self.done + sum(self.part.values()), line)


class Downloads:
    """Bars of downloads: name, bar, MB, speed, time to go; off a terminal a line every ten seconds. A context manager.

    `file(name)` begins a bar and returns what to call with the bytes so far and in all (None: not known).
    """

    def __init__(self, console: Console):
        self.console = console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
        )
        self.bar = Progress(*columns, console=console) if console.is_terminal else None

    def __enter__(self) -> "Downloads":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self.bar:
            self.bar.stop()

    def file(self, name: str, megabytes: float | None = None) -> Callable[[int, int | None], None]:
        began = said = time.monotonic()
        first: int | None = None  # bytes that an earlier start had fetched
        task = self.bar.add_task(name, total=None if megabytes is None else 1e6 * megabytes) if self.bar else None

        def on_bytes(done: int, total: int | None) -> None:
            nonlocal said, first
            now, first = time.monotonic(), done if first is None else first
            if self.bar and task is not None:
                self.bar.update(task, completed=done, total=total)
            elif now - said > 10:
                said, speed = now, max(0, done - first) / (now - began)
                left = f", {clock((total - done) / speed)} to go" if total and speed else ""
                whole = f" of {total / 1e6:.1f}" if total else ""
                self.console.print(f"{name}: {done / 1e6:.1f}{whole} MB, {speed / 1e6:.1f} MB/s{left}")

        return on_bytes
