"""The files of a run: parts and rows, which survive a kill at any moment; the sorted file of all rows; the summary."""

import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dp.evaluation.rows import Group, Row
from dp.output import shapes
from dp.output.locks import take_lock
from dp.output.run_files import Start, Summary, Timing, without_figure

ROOT = Path(__file__).parents[2]
IMAGES, SUMMARY, START = "images.jsonl", "summary.json", "start.json"
ROWS = "rows-*.jsonl"  # the pattern of the names of the shards' rows
FORMAT = 2  # the format version of summary.json
RUN_FILES = (".json", ".jsonl", ".safetensors")  # how the names of a run's files end
ASIDE = " to move the rows aside and begin anew"


def write_atomic(path: Path, data: bytes) -> None:
    """Write the whole file or nothing, even if the power fails: temporary file, fsync, rename."""
    who = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"  # other machines may share the folder
    temporary = path.with_name(f".{path.name}.{who}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def append(path: Path, lines: Iterable[dict]) -> None:
    """Append lines to a .jsonl file with one write and one fsync. A kill can only leave an incomplete last line."""
    data = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_rows(folder: Path) -> dict[tuple[str, int, int], Row]:
    """All whole rows that any shard has written, by (arm, seed, id). A row that was written twice counts once.

    A damaged row is left out, as if it had not been computed, see `damaged_rows`.
    """
    rows = [row for path in sorted(folder.glob(ROWS)) for row in _lines(path, Row)[0]]
    return {(row["arm"], row["seed"], row["id"]): Row(**row) for row in rows}


def damaged_rows(folder: Path) -> list[str]:
    """A line of text for each file with rows that cannot be read."""
    return _damaged(folder, ROWS, Row, "their rows do not count")


def damaged_times(folder: Path) -> list[str]:
    """A line of text for each file with times that cannot be read."""
    return _damaged(folder, "timing-*.jsonl", Timing, "the run's time is too short by theirs")


def _damaged(folder: Path, pattern: str, shape: type, cost: str) -> list[str]:
    counts = {p: "all" if p.is_dir() else _lines(p, shape)[1] for p in sorted(folder.glob(pattern))}
    return [f"damaged: {n} lines of {path} cannot be read, {cost}" for path, n in counts.items() if n]


def _lines(path: Path, shape: type) -> tuple[list[Any], int]:
    """The whole lines of a .jsonl file, and the number of damaged ones."""
    return shapes.read_lines(path, shape, "run again")[1:]


class Writer:
    """Writes the results of a shard. Each shard has only one writer at a time.

    `label` is part of the names of the shard's files. `patience`: seconds to wait for another writer of this shard.
    Raises OSError if another process still writes the same shard after that time. A disk without file locks keeps no
    second writer out, see `take_lock`.
    """

    def __init__(self, folder: Path, label: str, patience: float = 10.0):
        self.folder, self.label = folder, label
        self.rows, self.timing = folder / f"rows-{label}.jsonl", folder / f"timing-{label}.jsonl"
        self._lock = (folder / f".lock-{label}").open("w")
        take_lock(self._lock, f"{folder} (shard {label})", patience)
        drop_torn_lines(self.rows, Row)
        drop_torn_lines(self.timing, Timing)
        self.next = self._drop_orphans()

    def write(self, group: Group) -> None:
        """Save the results of a unit: first its part, with images and logits, then its rows and its time."""
        tensors = {
            "ids": torch.tensor(group.unit.ids),
            "x_adv": group.x_adv.float().contiguous(),
            "adv": _stored(group.adv),
        }
        if group.clean is not None:
            tensors["clean"] = _stored(group.clean)
        if group.curves is not None:
            tensors["curves"] = group.curves.contiguous()
        data = save(tensors, metadata={"arm": group.unit.arm, "seed": str(group.unit.seed)})
        write_atomic(self.folder / f"part-{self.label}-{self.next}.safetensors", data)
        append(self.rows, [dict(row) for row in group.rows])
        unit = {"arm": group.unit.arm, "seed": group.unit.seed, "images": len(group.rows), "seconds": group.seconds}
        unit |= {"unrepeatable": list(group.unrepeatable)} if group.unrepeatable else {}
        if not self.timing.is_dir():  # a broken timing file costs times only
            append(self.timing, [unit])
        self.next += 1

    def close(self) -> None:
        """Let other processes write this shard."""
        self._lock.close()

    def _drop_orphans(self) -> int:
        """Delete the parts that a kill left without rows. Returns the next free part number.

        A damaged part stays, because its rows are good without it.
        """
        done = set() if not self.rows.exists() else {(r["arm"], r["seed"], r["id"]) for r in _lines(self.rows, Row)[0]}
        highest = -1
        for path in self.folder.glob(f"part-{self.label}-*.safetensors"):
            try:
                part = read_part(path)
            except ValueError:
                part = None
            if part is None or any((part["arm"], part["seed"], int(i)) in done for i in part["ids"]):
                highest = max(highest, int(path.stem.rsplit("-", 1)[1]))
            else:
                path.unlink()
        return highest + 1


def drop_torn_lines(path: Path, shape: type) -> None:
    """Take incomplete and damaged lines out of a .jsonl file."""
    if path.is_file():
        whole = b"".join(shapes.read_lines(path, shape, "run again")[0])
        if whole != path.read_bytes():
            write_atomic(path, whole)


def _stored(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.float32 if logits.shape[-1] <= 100 else torch.float16).contiguous()


def read_part(path: Path) -> dict:
    """The content of a part: `arm`, `seed`, `ids` (B,), `x_adv` (B,C,H,W) in [0,1], and logits (B,samples,K).

    The logits are `adv`, and `clean` in all conditions but the null control. Parts of newer runs have the loss `curves`
    (B,iterations,3). Raises ValueError for a damaged file.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a safetensors handle is no dict)
            metadata = file.metadata() or {}
        whole = {"arm", "seed", "ids", "x_adv", "adv"} <= {*tensors, *metadata}
    except (SafetensorError, OSError):
        whole, tensors, metadata = False, {}, {}
    if not whole:
        got = "a directory" if path.is_dir() else "a damaged file"
        todo = "its rows are good, but its images are lost: run again with overwrite=true to have them"
        raise ValueError(f"need {path} with attacked images and logits, got {got}: {todo}")
    return {"arm": metadata["arm"], "seed": int(metadata["seed"]), **tensors}


def merge(folder: Path) -> list[Row]:
    """Write all rows to images.jsonl, sorted by (arm, seed, id), and return them.

    This file is the same, byte for byte, for any order of the work, any shards and any number of workers.
    """
    rows = read_rows(folder)
    ordered = [rows[key] for key in sorted(rows)]
    write_atomic(folder / IMAGES, "".join(json.dumps(r, separators=(",", ":")) + "\n" for r in ordered).encode())
    return ordered


def seconds(folder: Path) -> float:
    """The worker seconds that all units have taken so far. What cannot be read of them is left out."""
    return sum(line["seconds"] for line in _times(folder))


def unrepeatable(folder: Path) -> list[str]:
    """The operations of all units that may give other last bits when they are computed again, see `dp.repeatable`."""
    return sorted({name for line in _times(folder) for name in line.get("unrepeatable", [])})


def _times(folder: Path) -> Iterator[Timing]:
    paths = [path for path in folder.glob("timing-*.jsonl") if path.is_file()]
    return (line for path in paths for line in _lines(path, Timing)[0])


def read_summary(folder: Path) -> dict | None:
    """The summary of a finished run, or None if the run is not finished.

    Raises ValueError if the summary has another format or is damaged.
    """
    path = folder / SUMMARY
    if not path.exists():
        return None
    todo = "delete it and start the run again, which writes it from its rows; if it was archived, archive it again"
    summary = shapes.read_json(path, dict, todo)
    if summary.get("format", 1) != FORMAT:
        raise ValueError(
            f"need {path} of format {FORMAT}, got {summary.get('format', 1)}: move the folder away and run it again"
        )
    problem = shapes.misfit(summary, Summary) or without_figure(summary)
    if problem:
        raise ValueError(f"need {path} as a run writes it, got {problem}: {todo}")
    return summary


def write_summary(folder: Path, summary: dict) -> None:
    """Write summary.json into the folder of a run."""
    write_atomic(folder / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())


def begin(folder: Path, config: dict, code: str, overwrite: bool, rows: str = ROWS) -> None:
    """Make the folder of a run. If a partial run is in it, check that the same code made it.

    `rows`: the pattern of the names of its rows' files. `overwrite` moves the files of the earlier run into `old-<n>`.
    Raises ValueError for a partial run of other or unknown code and for a directory in the place of a file, and
    NotADirectoryError if the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"need to make the folder {folder}, got a file in its place: move it away") from None
    start, written = folder / START, [*folder.glob(rows)]
    if overwrite and (start.exists() or written):
        earlier = [int(path.name[4:]) for path in folder.glob("old-*") if path.name[4:].isdecimal()]
        aside = folder / f"old-{max(earlier, default=-1) + 1}"
        aside.mkdir()
        # START moves last: if a move is interrupted, the next start continues it.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == START):
            if (path.is_file() or path.suffix in RUN_FILES) and not path.name.startswith(".lock"):
                shutil.move(path, aside / path.name)
    if (folder / IMAGES).is_dir():
        raise ValueError(f"need the file {folder / IMAGES}, got a directory: move it away")
    if not start.exists() and written and not overwrite:
        raise ValueError(f"need {start}, which says what code made the rows, got none: add overwrite=true{ASIDE}")
    if start.exists():
        before = read_start(folder)["code"]
        if before != code:
            raise ValueError(
                f"need one code, plug-ins and weights for all rows of a run, got a partial run in {folder} made by "
                f"others ({before[:8]}, now {code[:8]}): go back to those, or add overwrite=true{ASIDE}"
            )
    else:
        write_atomic(start, (json.dumps({"code": code, "config": config}, indent=1) + "\n").encode())


def read_start(folder: Path) -> dict:
    """What start.json says of a run: `code` and `config`. Raises ValueError if it is damaged."""
    return shapes.read_json(folder / START, Start, f"add overwrite=true{ASIDE}")


def code_hash(weights: bool = True) -> str:
    """SHA-256 of the code that can change a row: dp/ without dp/commands/, and, if `weights`, the embedded weights."""
    digest, commands = hashlib.sha256(), ROOT / "dp" / "commands"
    for path in sorted(
        path for end in ("py", "safetensors")[: 1 + weights] for path in (ROOT / "dp").rglob(f"*.{end}")
    ):
        if commands not in path.parents:
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def provenance() -> dict:
    """`versions`, `commit`, `dirty` and `platform` of this machine. This is information and is never compared."""
    names = ("torch", "numpy", "hydra-core", "omegaconf", "safetensors", "scikit-learn")
    return {
        "versions": {"python": platform.python_version(), **{n: importlib.metadata.version(n) for n in names}},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "dp", "conf")),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _git(*args: str) -> str | None:
    if not (ROOT / ".git").exists():  # an installed package: a repository around it is not its own
        return None
    try:
        answer = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip() or None
