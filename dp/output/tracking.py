"""Tracking: a run's figures, curves and pictures in W&B or TensorBoard. The files under results/ remain the record.

A process of its own, `dp/output/mirror.py`, talks to the library. If that is slow, absent or dies, the run says so once
and goes on.
"""

import contextlib
import importlib.util
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from dp.output.console import console
from dp.output.record import ROOT
from dp.output.tracked import Content


class Tracker(Protocol):
    """What a run reports to. `images`: how many images it wants with their pictures."""

    images: int

    def log(self, figures: Mapping[str, float]) -> None:
        """Report figures while the run goes on."""
        ...

    def finish(self, content: Content) -> None:
        """Report the finished run, and end."""
        ...

    def close(self) -> None:
        """End. Without a `finish` before, the run counts as stopped."""
        ...


class NoTracking:
    """Tracks nothing."""

    images = 0

    def __init__(self, key: str, folder: Path, config: dict, preset: str | None = None):
        pass

    def log(self, figures: Mapping[str, float]) -> None:
        """Does nothing."""

    def finish(self, content: Content) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class Mirror:
    """The process that mirrors a run, fed by a thread, so that the run never waits for it before its end.

    `writer`: its kind; `name`: in words; `begun`: what it needs to begin; `patience`: seconds that the end of the run
    waits for it.
    """

    def __init__(self, writer: str, name: str, begun: dict[str, Any], images: int, patience: float):
        if images < 0 or patience < 0:
            raise ValueError(f"need tracking.images >= 0 and tracking.patience >= 0, got {images} and {patience}")
        self.name, self.images, self.patience, self.lost = name, images, patience, False
        self.lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dp.output.mirror", writer, str(patience)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt of the run does not reach it
            env={**os.environ, "PYTHONPATH": path},
        )
        self.feeder = threading.Thread(target=self._feed, daemon=True)
        self.feeder.start()
        self._send({"begin": begun})

    def log(self, figures: Mapping[str, float]) -> None:
        """Report figures while the run goes on. Those that are not finite are left out."""
        self._send({"log": {name: value for name, value in figures.items() if math.isfinite(value)}})

    def finish(self, content: Content) -> None:
        """Report the finished run, and end. Waits at most `patience` seconds."""
        self._send({"finish": content._asdict()})
        self.lines.put(None)
        until = time.monotonic() + self.patience
        self.feeder.join(self.patience)
        try:
            self.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._lose(f"has not taken everything within {self.patience:g} s (tracking.patience)")
        else:
            self._look()
        self._kill()

    def close(self) -> None:
        """End. Without a `finish` before, the process notes a stopped run and ends by itself."""
        self.lines.put(None)

    def _send(self, message: dict[str, Any]) -> None:
        if self.process.poll() is not None:
            self._look()
        if not self.lost:
            self.lines.put(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def _feed(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError), self.process.stdin as pipe:  # it has ended; `_send` and `finish` say so
            for line in iter(self.lines.get, None):
                pipe.write(line)
                pipe.flush()

    def _look(self) -> None:
        """Say what an ended process has to say: its own words, or that it died."""
        assert self.process.stdout is not None
        words = self.process.stdout.read().decode().strip() if not self.process.stdout.closed else ""
        self.process.stdout.close()
        if words:
            self._lose(" ".join(words.split()))
        elif self.process.returncode:
            self._lose(f"has ended (exit code {self.process.returncode})")

    def _lose(self, why: str) -> None:
        if not self.lost:
            self.lost = True
            console.print(f"warning: {self.name} {why}; the run's own files are complete")

    def _kill(self) -> None:
        """End the process and those that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _begun(key: str, folder: Path, config: dict, **more: Any) -> dict[str, Any]:
    return {"key": key, "folder": str(folder.absolute()), "config": config, **more}


class WandB(Mirror):
    """A run of Weights & Biases whose id is the run's key, so that a resumed run continues in the same dashboard.

    `group`: None means the preset's name; `mode`: None means online if an account is set up, else offline. Its files
    are in the run's folder, or where WANDB_DIR says.
    """

    def __init__(
        self,
        key: str,
        folder: Path,
        config: dict,
        preset: str | None = None,
        *,
        project: str = "dp",
        group: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        images: int = 64,
        patience: float = 120.0,
    ):
        if mode not in (None, "online", "offline"):
            raise ValueError(f"need tracking.mode online, offline or null, got {mode}")
        choices = config.get("choices", {})
        groups = [name for name in ("dataset", "purifier", "attack", "protocol") if name in choices]
        tags = [f"{name}={choices[name]}"[:64] for name in groups]
        begun = _begun(key, folder, config, project=project, group=group or preset, mode=mode, tags=tags)
        super().__init__("wandb", "Weights & Biases", begun, images, patience)


class TensorBoard(Mirror):
    """Event files for TensorBoard in the folder `tensorboard` of the run.

    Raises ValueError if the package is not installed.
    """

    def __init__(
        self,
        key: str,
        folder: Path,
        config: dict,
        preset: str | None = None,
        *,
        images: int = 64,
        patience: float = 120.0,
    ):
        if importlib.util.find_spec("tensorboardX") is None:
            todo = "pip install 'dp-purification[tensorboard]'"
            raise ValueError(f"need tensorboardX for tracking=tensorboard, got none: {todo}")
        super().__init__("tensorboard", "TensorBoard", _begun(key, folder, config, preset=preset), images, patience)
