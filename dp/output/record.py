"""The files of a run: parts and rows, which survive a kill at any moment; the sorted file of all rows; the summary."""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from dp.evaluation.rows import Group, Row

ROOT = Path(__file__).parents[2]
IMAGES, SUMMARY, START = "images.jsonl", "summary.json", "start.json"
FORMAT = 2  # the format version of summary.json


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


def read_lines(path: Path) -> list[dict]:
    """The complete lines of a .jsonl file. An incomplete last line is left out.

    Raises ValueError if another line cannot be parsed.
    """
    lines = path.read_bytes().split(b"\n")[:-1]  # after the last newline there is nothing, or an incomplete line
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise ValueError(
            f"need whole lines in {path}, got a broken one ({error}): start again with overwrite=true"
        ) from None


def read_rows(folder: Path) -> dict[tuple[str, int, int], Row]:
    """All rows that any shard has written, by (arm, seed, id). A row that was written twice counts once."""
    rows = [row for path in sorted(folder.glob("rows-*.jsonl")) for row in read_lines(path)]
    return {(row["arm"], row["seed"], row["id"]): Row(**row) for row in rows}


class Writer:
    """Writes the results of a shard. Each shard has only one writer at a time.

    `label` is part of the names of the shard's files. `patience`: seconds to wait for another writer of this shard.
    Raises OSError if another process still writes the same shard after that time.
    """

    def __init__(self, folder: Path, label: str, patience: float = 10.0):
        self.folder, self.label = folder, label
        self.rows, self.timing = folder / f"rows-{label}.jsonl", folder / f"timing-{label}.jsonl"
        self._lock = (folder / f".lock-{label}").open("w")
        _take(self._lock, f"{folder} (shard {label})", patience)
        for path in (self.rows, self.timing):
            _drop_torn_line(path)
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
        data = save(tensors, metadata={"arm": group.unit.arm, "seed": str(group.unit.seed)})
        write_atomic(self.folder / f"part-{self.label}-{self.next}.safetensors", data)
        append(self.rows, [dict(row) for row in group.rows])
        unit = {"arm": group.unit.arm, "seed": group.unit.seed, "images": len(group.rows), "seconds": group.seconds}
        append(self.timing, [unit])
        self.next += 1

    def close(self) -> None:
        """Let other processes write this shard."""
        self._lock.close()

    def _drop_orphans(self) -> int:
        """Delete the parts that a kill left without rows. Returns the next free part number."""
        done = set() if not self.rows.exists() else {(r["arm"], r["seed"], r["id"]) for r in read_lines(self.rows)}
        highest = -1
        for path in self.folder.glob(f"part-{self.label}-*.safetensors"):
            part = read_part(path)
            if any((part["arm"], part["seed"], int(i)) in done for i in part["ids"]):
                highest = max(highest, int(path.stem.rsplit("-", 1)[1]))
            else:
                path.unlink()
        return highest + 1


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            write_atomic(path, whole)


def _stored(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.float32 if logits.shape[-1] <= 100 else torch.float16).contiguous()


def _take(lock, what: str, patience: float) -> None:
    """Lock a file. Waits up to `patience` seconds, because the workers of a killed run need a moment to end."""
    until = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise OSError(
                    f"need {what} for one run at a time, got another process writing it: wait for it or stop it"
                ) from None
            time.sleep(0.1)


def read_part(path: Path) -> dict:
    """The content of a part: `arm`, `seed`, `ids` (B,), `x_adv` (B,C,H,W) in [0,1], and logits (B,samples,K).

    The logits are `adv`, and `clean` in all conditions but the null control.
    """
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a safetensors handle is no dict)
        metadata = file.metadata()
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
    """The worker seconds that all units have taken so far."""
    return sum(line["seconds"] for path in folder.glob("timing-*.jsonl") for line in read_lines(path))


def read_summary(folder: Path) -> dict | None:
    """The summary of a finished run, or None if the run is not finished.

    Raises ValueError if the summary has another format.
    """
    path = folder / SUMMARY
    if not path.exists():
        return None
    summary = json.loads(path.read_text())
    if summary.get("format") != FORMAT:
        raise ValueError(
            f"need {path} of format {FORMAT}, got {summary.get('format', 1)}: move the folder away and run it again"
        )
    return summary


def write_summary(folder: Path, summary: dict) -> None:
    """Write summary.json into the folder of a run."""
    write_atomic(folder / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())


def begin(folder: Path, config: dict, code: str, overwrite: bool) -> None:
    """Make the folder of a run. If a partial run is in it, check that the same code made it.

    `overwrite` moves the files of the earlier run into `old-<n>`. Raises ValueError for a partial run of other code,
    and NotADirectoryError if the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"need to make the folder {folder}, got a file in its place: move it away") from None
    start = folder / START
    if overwrite and start.exists():
        aside = folder / f"old-{len(list(folder.glob('old-*')))}"
        aside.mkdir()
        # START moves last: if a move is interrupted, the next start continues it.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == START):
            if path.is_file() and not path.name.startswith(".lock"):
                shutil.move(path, aside / path.name)
    if start.exists():
        before = json.loads(start.read_text())["code"]
        if before != code:
            raise ValueError(
                f"need one code for all rows of a run, got a partial run in {folder} made by other code "
                f"({before[:8]}, now {code[:8]}): go back to that code, or add overwrite=true to move its rows aside"
            )
    else:
        write_atomic(start, (json.dumps({"code": code, "config": config}, indent=1) + "\n").encode())


def code_hash() -> str:
    """SHA-256 of everything in the code that can change a row: run.py, dp/ without dp/commands/, embedded weights."""
    digest, commands = hashlib.sha256(), ROOT / "dp" / "commands"
    for path in sorted([*(ROOT / "dp").rglob("*.py"), *(ROOT / "dp").rglob("*.safetensors"), ROOT / "run.py"]):
        if path.exists() and commands not in path.parents:
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def provenance() -> dict:
    """`versions`, `commit`, `dirty` and `platform` of this machine. This is information and is never compared."""
    names = ("torch", "numpy", "hydra-core", "omegaconf", "safetensors", "scikit-learn")
    return {
        "versions": {"python": platform.python_version(), **{n: importlib.metadata.version(n) for n in names}},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "dp", "conf", "run.py")),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _git(*args: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip() or None
