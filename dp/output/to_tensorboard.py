"""The writer of event files for TensorBoard, in the process of `dp/output/mirror.py`."""

import base64
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

END = "finished"  # the tag of the last event begins so
CURVES = ("loss", "gradient_norm", "right", "images")


class ToTensorBoard:
    """Event files in the folder `tensorboard` of a run: scalars, texts, pictures and curves over iterations.

    `say`: notes trouble for people. For the other arguments see `dp.output.tracking.TensorBoard`.
    """

    def __init__(
        self, *, say: Callable[[str], None], key: str, folder: str, config: dict[str, Any], preset: str | None
    ):
        self.say, self.place, self.lines = say, Path(folder) / "tensorboard", 0
        self.earlier = set(self.place.glob("events.*"))
        self.writer = SummaryWriter(str(self.place))
        self.writer.add_text("config", f"```\n{json.dumps(config, indent=1)}\n```")
        self.writer.add_text("run", f"{key}, preset {preset}" if preset else key)

    def log(self, figures: dict[str, float]) -> None:
        """Add the figures as scalars, over the number of lines so far."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, self.lines)
        self.lines += 1

    def finish(self, content: dict[str, Any]) -> None:
        """Write figures, curves, tables and pictures, and end. Looks whether all is kept."""
        for name, value in content["figures"].items():
            if isinstance(value, str):
                self.writer.add_text(f"summary/{name}", value)
            else:
                self.writer.add_scalar(f"summary/{name}", value)
        for arm, curve in content["curves"].items():
            for name in CURVES:
                for i, value in zip(curve["iterations"], curve[name], strict=True):
                    if value is not None:
                        self.writer.add_scalar(f"curve/{arm}/{name}", value, i)
        for name, (columns, pictures, rows) in content["tables"].items():
            texts = [c for c in columns if c not in pictures]
            self.writer.add_text(name, markdown(texts, [[row[columns.index(c)] for c in texts] for row in rows]))
            for column in pictures:
                shown = [row[columns.index(column)] for row in rows]
                if shown := [_pixels(png) for png in shown if png is not None]:
                    self.writer.add_images(f"{name}/{column}", np.stack(shown), dataformats="NHWC")
        self.writer.add_text(END, "the run is finished")
        self.writer.close()
        if not any(
            value.tag.startswith(END)
            for path in {*self.place.glob("events.*")} - self.earlier
            for value in _values(path)
        ):
            self.say(f"has not written all of its file (a full disk?) in {self.place}")

    def stop(self) -> None:
        """End a run that was stopped."""
        self.writer.close()


def markdown(columns: list[str], rows: list[list[Any]]) -> str:
    """A table as text."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join("" if v is None else str(v) for v in line) + " |" for line in lines)


def events(data: bytes) -> list[Event]:
    """The whole events in the bytes of an event file: length, checksum, message, checksum (TFRecord)."""
    found, place = [], 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        if place + 16 + length > len(data):
            break
        found.append(Event.FromString(data[place + 12 : place + 12 + length]))
        place += 16 + length
    return found


def _values(path: Path) -> list[Any]:
    return [value for event in events(path.read_bytes()) for value in event.summary.value]


def _pixels(png: str) -> np.ndarray:
    """(H,W,3) uint8."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
