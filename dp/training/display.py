"""The progress of a training for people: a bar, lines, a tracker, and the curve of the loss."""

import time
from pathlib import Path

from matplotlib.figure import Figure
from rich.progress import Progress, TimeRemainingColumn

from dp.output.console import console
from dp.output.record import write_atomic
from dp.output.report import clock
from dp.output.tracking import Tracker
from dp.training.trainer import Training


class Display:
    """The progress of a training, on the console and to a tracker. Call it with the training after every step."""

    def __init__(self, training: Training, tracker: Tracker):
        self.tracker, self.first, self.start_time = tracker, training.step, time.monotonic()
        self.last_line, self.logged = self.start_time, len(training.history)
        columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn(compact=True))
        self.bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self.task = self.bar.add_task("training", total=training.steps) if self.bar else None

    def __call__(self, training: Training) -> None:
        if len(training.history) > self.logged:
            self.logged = len(training.history)
            self.tracker.log({"step": training.step, "loss": training.history[-1][1]})
        loss = f", loss {training.history[-1][1]:.4f}" if training.history else ""
        if self.bar and self.task is not None:
            self.bar.start()
            self.bar.update(self.task, completed=training.step, description=f"step {training.step}{loss}")
        elif time.monotonic() - self.last_line > 10:
            self.last_line = time.monotonic()
            left = (self.last_line - self.start_time) / (training.step - self.first) * (training.steps - training.step)
            done = 100 * training.step / training.steps
            console.print(f"{done:3.0f} %, {clock(left)} to go: step {training.step}/{training.steps}{loss}")

    def stop(self) -> None:
        """Remove the bar."""
        if self.bar:
            self.bar.stop()


def curve(training: Training, folder: Path) -> None:
    """Write loss.csv, the mean loss of every training.log_every steps, and at the end loss.png."""
    lines = "".join(f"{step},{loss:.8g}\n" for step, loss in training.history)
    write_atomic(folder / "loss.csv", f"step,loss\n{lines}".encode())
    if training.step == training.steps:
        fig = Figure(figsize=(6, 3.5), layout="constrained")
        ax = fig.subplots()
        ax.plot(*zip(*training.history, strict=True), color="#0b6e99", lw=1)
        ax.set(xlabel="step", ylabel=f"mean loss of {training.log_every} steps", yscale="log")
        ax.spines[["top", "right"]].set_visible(False)
        fig.savefig(folder / "loss.png", dpi=120)
