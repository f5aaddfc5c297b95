"""Sixty damaged run folders, drawn by a seeded generator: run again, archive, tables and rescore on each.

No command may end in a traceback, say more than one line, or change a file that is not its own.
"""

import functools
import io
import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dp import cli
from dp.commands import archive, figures, rescore, tables
from dp.output import record
from dp.runs.errors import command
from dp.runs.keys import run_key
from tests.helpers.compose import composed, finished

GIVEN = ["purifier=diffpure", "purifier.t=0.3", "purifier.steps=1", "attack.iterations=1", "attack.eot=1"]
GIVEN += ["protocol.images=4", "protocol.seeds=[5]", "protocol.votes=3", "dataset.lanes=2", "workers=1", "window=1"]
GIVEN += ["dataset.draws_per_call=3", "audit=false"]
CASES, FORKED = 60, 10


class Damage(NamedTuple):
    """What is wrong with a run folder: a file and what was done to it; `running`: there is no summary yet."""

    file: str
    kind: str
    running: bool

    def __str__(self) -> str:
        return f"{self.kind} {self.file}{' of an unfinished run' if self.running else ''}"


def truncated(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(1, len(data) - 1)])


def emptied(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def binary(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(300))


def binary_line(path: Path, rng: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[rng.randrange(len(lines))] = rng.randbytes(40).replace(b"\n", b"") + b"\n"
    path.write_bytes(b"".join(lines))


def retyped(path: Path, rng: random.Random) -> None:
    """Another JSON type at a random place, of any depth, of a random line."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    k = rng.randrange(len(lines))
    content: Any = json.loads(lines[k])
    holder, key = {"": content}, ""
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))  # type: ignore[assignment]
    others = [v for v in (5, "text", [1], {"a": 1}, None, 0.5) if type(v) is not type(holder[key])]
    holder[key] = rng.choice(others)
    lines[k] = json.dumps(content if key != "" else holder[""])
    path.write_text("\n".join(lines) + "\n")


def missing(path: Path, rng: random.Random) -> None:
    path.unlink()


def directory(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    f.__name__: f for f in (truncated, emptied, binary, binary_line, retyped, missing, directory)
}
FILES = ["summary.json", "start.json", "images.jsonl", "rows-1of1-0.jsonl", "timing-1of1-0.jsonl"]
FILES += ["part-1of1-0-1.safetensors", "starts.jsonl"]


def drawn() -> list[Damage]:
    """Sixty different damages: every file with every kind that it can have, finished and unfinished."""
    every = [
        Damage(file, kind, running)
        for file in FILES
        for kind in KINDS
        for running in (False, True)
        if not (kind == "binary_line" and not file.endswith(".jsonl"))
        and not (kind == "retyped" and file.endswith(".safetensors"))
        and not (running and file in ("summary.json", "images.jsonl"))
    ]
    rng = random.Random(0)
    rng.shuffle(every)
    retypings = [Damage(file, "retyped", False) for file in FILES[:5]]
    return [*every, *rng.choices(retypings, weights=[4, 2, 1, 1, 1], k=CASES - len(every))][:CASES]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run below results/runs/ of an empty folder, and its archived copy."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("whole")
    config = composed(*GIVEN)
    folder = root / "results" / "runs" / run_key(config)
    assert finished(config, folder)
    archive.archive(folder, root / "results" / "measured")
    return root


def spoiled(whole: Path, root: Path, k: int, damage: Damage) -> Path:
    """A copy of all that is below `whole`, with a damaged run. Returns the run's folder."""
    shutil.copytree(whole, root)
    (folder,) = (root / "results" / "runs").iterdir()
    if damage.running:
        (folder / "summary.json").unlink()
        (folder / "images.jsonl").unlink()
    KINDS[damage.kind](folder / damage.file, random.Random(k))
    return folder


def files(folder: Path) -> dict[str, bytes | None]:
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if not p.name.startswith(".lock")}
    return {name: p.read_bytes() if p.is_file() else None for name, p in paths.items()}


def readable(folder: Path) -> set[tuple[str, int, int]]:
    """The keys of the rows that can be read."""
    is_file = all(path.is_file() for path in folder.glob("rows-*.jsonl"))
    return set(record.read_rows(folder)) if is_file else set()


def said(capsys, code: int) -> str:
    """What a command says when it is refused: one line with a way out. Nothing if it ends well."""
    err = capsys.readouterr().err
    assert code in (0, 2), (code, err)
    if code == 0:
        assert err == ""
        return ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Errno" not in err
    assert ": " in err.removeprefix("error: ")
    return err


def check(damage: Damage, folder: Path, good: Path, capsys) -> None:
    """The four commands on one damaged folder."""
    before, root = files(folder), folder.parents[2]
    measured = files(root / "results" / "measured")

    code = rescore.main([str(folder), "--own"])
    told = {"rescore": said(capsys, code)}
    code = archive.main([str(folder)])
    told["archive"] = said(capsys, code)
    if code == 2:
        assert files(root / "results" / "measured") == measured
    (root / "results" / "measured" / "damaged").symlink_to(folder, target_is_directory=True)
    code = tables.main([])
    told["tables"] = said(capsys, code)
    (root / "results" / "measured" / "damaged").unlink()
    assert files(folder) == before, "a command that reads has changed the run"

    rows = readable(folder)
    outside = {k: v for k, v in files(root).items() if not (root / k).is_relative_to(folder)}
    code = command(lambda: 0 if finished(composed(*GIVEN), folder) else 1)
    told["run"] = said(capsys, code)
    assert {k: v for k, v in files(root).items() if not (root / k).is_relative_to(folder)} == outside
    after = files(folder)
    if code == 0:
        assert (folder / "summary.json").is_file()
        if damage.file != "images.jsonl":
            assert after["images.jsonl"] == (good / "images.jsonl").read_bytes()
        assert readable(folder) >= rows
    else:
        assert after == before, "a run that is refused has changed a file"
    expected(damage, told)


def expected(damage: Damage, told: dict[str, str]) -> None:
    """Who must refuse what, and name it."""
    if damage.running:
        assert "need a finished run with summary.json" in told["archive"]
        assert "need a finished run with summary.json" in told["rescore"]
    if damage.file == "summary.json" and damage.kind not in ("missing", "retyped"):
        assert all("summary.json" in line for line in told.values()), told
    if damage.file == "start.json" and damage.running and damage.kind != "retyped":
        assert "start.json" in told["run"]
    if damage.file == "images.jsonl" and damage.kind != "retyped":
        assert "images.jsonl" in told["archive"]
        assert told["rescore"] == told["run"] == told["tables"] == ""
    if damage.file.startswith("timing"):
        assert told["run"] == told["tables"] == ""
        assert damage.running or told["archive"] == told["rescore"] == ""
    if damage.file.startswith("part") and not damage.running:
        assert "part-" in told["rescore"]
        assert told["archive"] == told["run"] == told["tables"] == ""
    if damage.file.startswith("rows") and damage.kind != "directory":
        assert told["run"] == ""


def test_sixty_damaged_folders(whole, tmp_path, monkeypatch, capsys):
    """The paper's tables are left out: they look up runs by their keys, and this run's key is in none of them."""
    monkeypatch.setattr(record, "code_hash", functools.cache(record.code_hash))
    monkeypatch.setattr(tables, "PUBLISHED", tmp_path / "none")
    (good,) = (whole / "results" / "runs").iterdir()
    cases = drawn()
    assert len(cases) == CASES
    assert {d.kind for d in cases} == set(KINDS)
    assert {d.file for d in cases} == set(FILES)
    for k, damage in enumerate(cases):
        root = tmp_path / str(k)
        folder = spoiled(whole, root, k, damage)
        monkeypatch.chdir(root)
        try:
            check(damage, folder, good, capsys)
        except Exception as error:
            raise AssertionError(f"case {k}, {damage}: {error!r}") from error
        shutil.rmtree(root)


def forked(root: Path, *argv: str) -> int:
    """A process that runs `dp argv...` in `root`, its output in out and err there. Returns its id."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.chdir(root)
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(root / name, os.O_WRONLY | os.O_CREAT, 0o644), number)
            sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w", closefd=False)) for n in (1, 2))
            sys.argv = ["dp", *argv]
            code = cli.main()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def test_ten_of_them_in_processes_of_their_own(whole, tmp_path):
    """The whole command line, with its exit code and its output."""
    (name,) = (path.name for path in (whole / "results" / "runs").iterdir())
    commands = [["run", *GIVEN], ["archive", f"results/runs/{name}"], ["rescore", f"results/runs/{name}", "--own"]]
    started = []
    for k, damage in enumerate(drawn()[:FORKED]):
        root = tmp_path / str(k)
        spoiled(whole, root, k, damage)
        started.append((root, damage, os.waitstatus_to_exitcode(os.waitpid(forked(root, *commands[k % 3]), 0)[1])))
    for root, damage, code in started:
        err = (root / "err").read_text()
        assert code in (0, 2), (str(damage), err)
        assert err.count("\n") == (code == 2), (str(damage), err)
        assert "Traceback" not in err
    assert {code for _, _, code in started} == {0, 2}


def test_an_archived_folder_keeps_no_images(whole, capsys):
    (folder,) = (whole / "results" / "measured").iterdir()
    assert rescore.main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"got {folder}, an archived copy: images are not kept there" in line


@pytest.mark.parametrize("kind", ["truncated", "emptied", "binary", "directory"])
def test_figures_name_a_bad_table(tmp_path, monkeypatch, kind):
    path = tmp_path / "adjoint.csv"
    shutil.copy(record.ROOT / "results" / "measured" / "adjoint.csv", path)
    KINDS[kind](path, random.Random(0))
    monkeypatch.setattr(figures, "MEASURED", tmp_path)
    with pytest.raises(ValueError, match=rf"{path}( as the study writes it)?, got .+: "):
        figures.adjoint_error()


def test_figures_name_a_bad_summary(whole, tmp_path, monkeypatch):
    shutil.copytree(whole / "results" / "measured", tmp_path / "measured")
    (folder,) = (tmp_path / "measured").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    monkeypatch.setattr(figures, "MEASURED", tmp_path / "measured")
    assert len(figures.uniform_runs("digits", 4)) == 1
    summary["config"]["purifier"]["t"] = "text"
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match=rf"need {folder}/summary\.json .* a text for config.purifier.t instead of"):
        figures.uniform_runs("digits", 4)
    (folder / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=rf"need {folder}/summary\.json as it was written, got a file that is torn"):
        figures.uniform_runs("digits", 4)
