"""The examples of docs/extending.md, copied out and run outside the tree."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import examples

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
RUNS = [command for command in examples.commands(PAGE) if command[:2] == ["python", "run.py"]]
SMALL = ("protocol.images=4", "protocol.seeds=[2024]", "protocol.votes=3", "workers=1", "audit=false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working folder with the page's files, in which its scripts have run."""
    made = tmp_path_factory.mktemp("outside")
    examples.write(PAGE, made)
    for command in examples.commands(PAGE):
        if command[1] != "run.py":
            done = started(command[1:], made)
            assert done.returncode == 0, done.stderr[-2000:]
    return made


def started(words: list[str], folder: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "PWD": str(folder)}
    return subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True)


def test_every_kind_has_an_example():
    groups = {Path(name).parts[1] for name in examples.files(PAGE) if name.startswith("mine/")}
    assert groups == {"purifier", "attack", "dataset", "classifier", "denoiser", "threat_model", "protocol"}
    assert all("--config-dir" in command for command in RUNS)


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNS, ids=lambda command: " ".join(command[4:]))
def test_an_example_runs_outside_the_tree(command, folder, tmp_path):
    small = [*SMALL, f"results={tmp_path}"]
    done = started([str(ROOT / "run.py"), *command[2:], *small], folder)
    assert done.returncode == 0, done.stderr[-2000:]
    (summary,) = tmp_path.glob("*/summary.json")
    found = json.loads(summary.read_text())
    assert found["robust"]["single"]["n"] == 4
    chosen = dict(word.split("=", 1) for word in command[4:])
    for group, option in chosen.items():
        if group in found["config"]["choices"]:
            assert found["config"]["choices"][group] == option
