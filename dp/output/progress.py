"""Progress of a run: a bar on a terminal, plain lines elsewhere; the time to go and the robust accuracy so far."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

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
from dp.evaluation.work import Costs, slots, total
from dp.output.report import clock
from dp.output.row_table import count_of
from dp.output.tracking import Tracker


class Bar:
    """Shows how much of a job is done: a bar on a terminal, elsewhere a plain line every ten seconds.

    Use it as a context manager, and call it with the work done so far and a line of text. `total`: the whole work, in
    any unit. Both forms show the time to go. If the first estimate is over an hour, it is also printed as a line.
    `base`: the time from which the speed is measured, and the work of this start that was done then; None: not yet.
    """

    def __init__(self, console: Console, total: float):
        self.console, self.total = console, total
        self.start_time = self.last_line = time.monotonic()
        self.base: tuple[float, float] | None = (self.start_time, 0.0)
        self.announced = False
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self.task = self.bar.add_task("starting", total=total, left="") if self.bar else None

    def __enter__(self) -> "Bar":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, done: float, line: str, earlier: float = 0.0) -> None:
        """`earlier`: the part of the work done so far that an earlier start has done."""
        now = time.monotonic()
        left = self.seconds_left(done, done - earlier, now)
        to_go = "time to go not known yet" if left is None else f"{clock(left)} to go"
        if not self.announced and left is not None and now - self.start_time > 20:
            self.announced = True
            if left > 3600:
                self.console.print(f"estimate: {to_go}")
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=done, description=line, left=to_go)
        elif now - self.last_line > 10:
            self.last_line = now
            share = done / self.total if self.total > 0 else 1.0
            self.console.print(f"{100 * min(1.0, share):3.0f} %, {to_go}: {line}")

    def seconds_left(self, done: float, ours: float, now: float) -> float | None:
        """The time to go, at the speed since `base`. None if no work is done since then."""
        if self.base is None or ours <= self.base[1]:
            return None
        begin, before = self.base
        return (now - begin) * max(0.0, self.total - done) / (ours - before)


class Display:
    """The progress of a run. Use it as a context manager, and call it with every event.

    `units`: the work of this start, `begun` those of them that go on from a saved state; `rows`: the rows that earlier
    starts have written; `work`: what an image costs under each condition; `processes`: how many work. Several need time
    to start, so the speed is measured from the moment at which each has done something.
    """

    def __init__(
        self,
        console: Console,
        evaluation: Evaluation,
        units: Sequence[Unit],
        rows: Iterable[Row],
        tracker: Tracker,
        work: Mapping[str, Costs],
        begun: Collection[Unit] = (),
        processes: int = 1,
    ):
        self.evaluation, self.tracker, self.work, self.begun = evaluation, tracker, work, {*begun}
        self.part: dict[Unit, float] = {}
        self.right: list[tuple[bool, bool]] = []  # for each defended row: right by its first sample, right by the vote
        rows, ids = list(rows), {*evaluation.subset.ids.tolist()}
        ours = [row for row in rows if row["id"] in ids and row["seed"] in evaluation.seeds]
        self.done = self.earlier = sum(work[row["arm"]].total for row in ours)
        self.count(rows)
        self.bar = Bar(console, self.done + total(units, work, evaluation.lanes))
        self.waiting, self.seen = min(processes, len(units)), set[Unit]()
        if self.waiting > 1:
            self.bar.base = None

    def __enter__(self) -> "Display":
        self.bar.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self.bar.__exit__()

    def __call__(self, event: Event) -> None:
        unit, costs = event.unit, self.work[event.unit.arm]
        if unit in self.begun:  # what it had done before this start
            self.begun.discard(unit)
            self.earlier += slots(unit, self.evaluation.lanes) * costs.attack(max(0, event.step - 1))
        if event.rows is None:
            self.part[unit] = slots(unit, self.evaluation.lanes) * costs.attack(event.step)
            if event.point is not None:
                named = event.point._asdict().items()
                self.tracker.log({f"attack/{unit.arm}/{name}": value for name, value in named})
        else:
            self.part.pop(unit, None)
            self.done += total([unit], self.work, self.evaluation.lanes)
            self.count(event.rows)
            if event.unit.arm == "defended":
                single, vote = self.robust()
                self.tracker.log({"so_far/single": single, "so_far/vote": vote, "so_far/images": len(self.right)})
        self.seen.add(unit)
        if self.bar.base is None and len(self.seen) >= self.waiting:
            self.bar.base = (time.monotonic(), self.done + sum(self.part.values()) - self.earlier)
        self.show(event)

    def count(self, rows: Iterable[Row]) -> None:
        """Add the rows of the defended condition to the robust accuracy so far."""
        for row in rows:
            if row["arm"] == "defended":
                self.right.append((row["adv"][0] == row["label"], row["adv_vote"] == row["label"]))

    def robust(self) -> tuple[float, float]:
        """The robust accuracy so far in percent, by a single sample and by the vote. It needs at least one row."""
        n = len(self.right)
        return 100 * sum(single for single, _ in self.right) / n, 100 * sum(vote for _, vote in self.right) / n

    def show(self, event: Event) -> None:
        """Update the bar, or print a line, for an event."""
        seeds, ids = list(self.evaluation.seeds), event.unit.ids
        line = f"seed {event.unit.seed} ({seeds.index(event.unit.seed) + 1}/{len(seeds)}), {event.unit.arm}"
        line += f", {count_of(len(ids), 'image')} from id {ids[0]}, iteration {event.step}/{event.steps}"
        if self.right:
            line += f", robust so far {self.robust()[0]:.1f} % of {len(self.right)}"
        self.bar(self.done + sum(self.part.values()), line, self.earlier)


class Downloads:
    """The progress of downloads: a bar for each file on a terminal, elsewhere a line every ten seconds.

    Use it as a context manager. Both forms show the megabytes, the speed and the time to go.
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
        """Begin the bar of one file. Returns a function of (bytes so far, bytes of the whole file).

        The second argument of that function is None if the size is not known. `megabytes`: the expected size.
        """
        start_time = last_line = time.monotonic()
        first: int | None = None  # bytes that an earlier start had fetched
        task = self.bar.add_task(name, total=None if megabytes is None else 1e6 * megabytes) if self.bar else None

        def on_bytes(done: int, total: int | None) -> None:
            nonlocal last_line, first
            now, first = time.monotonic(), done if first is None else first
            if self.bar and task is not None:
                self.bar.update(task, completed=done, total=total)
            elif now - last_line > 10:
                last_line, speed = now, max(0, done - first) / (now - start_time)
                left = f", {clock((total - done) / speed)} to go" if total and speed else ""
                whole = f" of {total / 1e6:.1f}" if total else ""
                self.console.print(f"{name}: {done / 1e6:.1f}{whole} MB, {speed / 1e6:.1f} MB/s{left}")

        return on_bytes
