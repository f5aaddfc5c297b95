"""The saved states of a run's attacks: a file for each unit that is under attack, so that a killed run goes on there.

A file only saves work. One that is torn, or that another run or other code wrote, is not used.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, uint8

from dp.evaluation.rows import Unit
from dp.evaluation.snapshot import Packed, Snapshot, packed
from dp.output.record import write_atomic

PATTERN = "state-*.safetensors"


@dataclass(frozen=True)
class Snapshots:
    """The saved states in the `folder` of a run. `key`: the run's key; `code`: the hash of the code."""

    folder: Path
    key: str
    code: str

    def path(self, unit: Unit) -> Path:
        """The file of a unit. Its name does not say who works on the unit, so that any worker may go on with it."""
        ids = hashlib.sha256(json.dumps(unit.ids).encode()).hexdigest()[:10]
        return self.folder / f"state-{unit.arm}-{unit.seed}-{ids}.safetensors"

    def write(self, unit: Unit, snapshot: Snapshot) -> None:
        """Save the state of a unit in place of its earlier one."""
        self.write_packed(unit, packed(snapshot))

    def write_packed(self, unit: Unit, state: Packed) -> None:
        """The same for a state that another process has packed."""
        tensors, fields = state
        about = {"key": self.key, "code": self.code, "unit": unit, "snapshot": fields}
        text = json.dumps(about, separators=(",", ":"))
        data = save(tensors, metadata={"about": text, "sha256": _digest(text, tensors)})
        write_atomic(self.path(unit), data)
        self._drop_torn(unit)

    def read(self, unit: Unit) -> Packed | None:
        """The saved state of a unit; None if there is none. Raises ValueError if it cannot be used."""
        try:
            return self._read(self.path(unit))[1]
        except FileNotFoundError:
            return None

    def drop(self, unit: Unit) -> None:
        """Delete the state of a unit, because its rows are written."""
        self.path(unit).unlink(missing_ok=True)
        self._drop_torn(unit)

    def begun(self, done: Iterable[tuple[str, int, int]]) -> tuple[list[Unit], list[str]]:
        """The units whose state is saved, and a line for each file that cannot be used.

        `done`: (arm, seed, id) of finished rows. The states of finished units are deleted.
        """
        done, units, lines = set(done), [], []
        for path in sorted(self.folder.glob(PATTERN)):
            try:
                unit, _ = self._read(path)
            except FileNotFoundError:  # another shard has finished this unit
                continue
            except ValueError as error:
                lines.append(unused(path, error))
                continue
            if done.isdisjoint((unit.arm, unit.seed, i) for i in unit.ids):
                units.append(unit)
            else:
                self.drop(unit)
        return units, lines

    def clear(self) -> None:
        """Delete all saved states, because the run is finished."""
        for path in [*self.folder.glob(PATTERN), *self.folder.glob(f".{PATTERN}.*.tmp")]:
            if path.is_file():
                path.unlink(missing_ok=True)

    def _read(self, path: Path) -> tuple[Unit, Packed]:
        tensors, text = _whole(path)
        about = json.loads(text)
        if about["key"] != self.key:
            raise ValueError(f"it is of another run, {about['key']}")
        if about["code"] != self.code:
            raise ValueError(f"other code wrote it ({about['code'][:8]}, now {self.code[:8]})")
        arm, seed, ids = about["unit"]
        return Unit(arm, seed, tuple(ids)), Packed(tensors, about["snapshot"])

    def _drop_torn(self, unit: Unit) -> None:
        """Delete what a kill left of a file of this unit that was being written."""
        for path in self.folder.glob(f".{self.path(unit).name}.*.tmp"):
            path.unlink(missing_ok=True)


class Keeper:
    """Saves the state of a unit that is under attack. Call it with every snapshot; it writes one every `every` seconds,
    and the latest one when `save` is called.
    """

    def __init__(self, snapshots: Snapshots, unit: Unit, every: float):
        self.snapshots, self.unit, self.every = snapshots, unit, every
        self.latest: Snapshot | None = None
        self.last_write = time.monotonic()

    def __call__(self, snapshot: Snapshot) -> None:
        self.latest = snapshot
        if time.monotonic() - self.last_write >= self.every:
            self.save()
            self.last_write = time.monotonic()

    def save(self) -> None:
        """Write the latest snapshot, if there is one."""
        if self.latest is not None:
            self.snapshots.write(self.unit, self.latest)


def unused(path: Path, why: object) -> str:
    """The line about a saved state that is not used."""
    return f"note: the saved state {path.name} is not used, because {why}: its unit starts again"


def _whole(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file, and the text about them. Raises ValueError if a byte of it has changed."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a handle is no dict)
        text, digest = metadata["about"], metadata["sha256"]
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError):
        raise ValueError("it is damaged") from None
    if digest != _digest(text, tensors):
        raise ValueError("it is damaged")
    return tensors, text


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a text and of all tensors, with their names, types and shapes."""
    digest = hashlib.sha256(text.encode())
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        digest.update(values.view(uint8).numpy().data)
    return digest.hexdigest()
