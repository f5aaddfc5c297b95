"""The writer to Weights & Biases, in the process of `dp/output/mirror.py`."""

import base64
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wandb
from PIL import Image
from wandb.errors import CommError, UsageError
from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

from dp.output.wandb_file import frames

ANSWER = 20.0  # seconds in which a server must answer at the start
FLUSH = 15.0  # seconds in which W&B's own process writes what it has


class ToWandB:
    """A W&B run. If its server does not answer, the run is recorded offline, and that is said.

    `say`: notes trouble for people. For the other arguments see `dp.output.tracking.WandB`.
    """

    def __init__(
        self,
        *,
        say: Callable[[str], None],
        key: str,
        folder: str,
        config: dict[str, Any],
        project: str,
        group: str | None,
        mode: str | None,
        tags: list[str],
    ):
        self.say = say
        place = Path(os.environ.get("WANDB_DIR") or folder)
        # Pictures of tables lie there until they are sent, so they belong to the record of an offline run.
        os.environ.setdefault("WANDB_DATA_DIR", str(place / "wandb" / "data"))
        mode = mode or os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        begin = {"project": project, "id": key, "name": key, "group": group, "tags": tags, "config": config}
        begin |= {"dir": str(place), "resume": "allow"}
        settings = wandb.Settings(silent=True, console="off", init_timeout=ANSWER)
        try:
            self.run = wandb.init(mode=mode, settings=settings, **begin)  # pyright: ignore[reportArgumentType]
        except (CommError, UsageError) as error:
            if mode == "offline":
                raise
            wandb.teardown()  # its service still holds the id
            self.run = wandb.init(mode="offline", settings=settings, **begin)
            why = " ".join(str(error).split())[:120]
            self.say(f"could not be reached ({why}), so this run is recorded offline, and `wandb sync` sends it")
        self.run.define_metric("curve/iteration")
        self.run.define_metric("curve/*", step_metric="curve/iteration")

    def log(self, figures: dict[str, float]) -> None:
        """Add a line to the history."""
        self.run.log(figures)

    def finish(self, content: dict[str, Any]) -> None:
        """Write the summary, the curves as lines of the history, and the tables, and end. Looks whether all is kept."""
        for line in curve_lines(content["curves"]):
            self.run.log(line)
        for name, (columns, pictures, rows) in content["tables"].items():
            whole: list[Any] = [[_shown(v, c in pictures) for c, v in zip(columns, row, strict=True)] for row in rows]
            self.run.log({name: wandb.Table(columns=columns, data=whole)})
        self.run.summary.update(content["figures"])
        path = Path(self.run.settings.sync_file)
        self.run.finish()
        if not self.run.disabled:  # which WANDB_MODE=disabled asks for, and which keeps no file
            self._check(path)

    def stop(self) -> None:
        """End a run that was stopped."""
        self.run.finish(exit_code=1)

    def _check(self, path: Path) -> None:
        """W&B does not tell of a full disk or a lost process; its file ends with an `exit` if all was written."""
        until = time.monotonic() + FLUSH
        while "exit" not in kinds_of(path):
            if time.monotonic() > until:
                self.say(f"has not written all of its file (a full disk?) in {path.parent}")
                return
            time.sleep(0.2)


def kinds_of(path: Path) -> set[str]:
    """The kinds of records in a W&B file."""
    if not path.is_file():
        return set()
    records = map(Record.FromString, frames(path.read_bytes()))
    return {str(record.WhichOneof("record_type")) for record in records}


def curve_lines(curves: dict[str, dict[str, list]]) -> list[dict[str, float]]:
    """The curves of all conditions as lines of a history, one for each iteration, in order."""
    lines: dict[int, dict[str, float]] = {}
    for arm, curve in curves.items():
        for k, i in enumerate(curve["iterations"]):
            values = {f"curve/{arm}/{name}": curve[name][k] for name in ("loss", "gradient_norm", "right", "images")}
            line = lines.setdefault(i, {"curve/iteration": i})
            line |= {name: value for name, value in values.items() if value is not None}
    return [lines[i] for i in sorted(lines)]


def _shown(value: Any, picture: bool) -> Any:
    """A cell as W&B takes it."""
    if not picture or value is None:
        return value
    return wandb.Image(Image.open(io.BytesIO(base64.b64decode(value))))
