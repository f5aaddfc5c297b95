"""Imports inside dp/ point one way: from what a person calls down to the ground, which knows nothing of the rest."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

DP = Path(__file__).parents[1] / "dp"
FLOORS = (  # from the top; a room may import the rooms below it, and those beside it unless APART says otherwise
    ("__main__",),
    ("cli",),
    ("__init__",),
    ("api",),
    ("commands",),
    ("page",),
    ("runs",),
    ("audit", "training", "certification", "sanitizing"),
    ("output",),
    ("evaluation", "contracts"),
    ("attacks",),
    ("defense",),
    ("purifiers", "threat_models"),
    ("diffusion", "weights", "datasets", "canvas", "classifiers"),
    (
        "files",
        "statistics",
        "nets",
        "rng",
        "philox",
        "transfer",
        "precision",
        "subset",
        "objectives",
        "adam",
        "spelling",
        "assets",
    ),
)
FLOOR = {room: -k for k, rooms in enumerate(FLOORS) for room in rooms}
APART = {("training", "audit"), ("audit", "training"), ("attacks", "purifiers"), ("attacks", "nets")}
APART |= {("evaluation", "contracts")}
APART |= {("certification", "audit"), ("certification", "training")}
APART |= {("audit", "certification"), ("training", "certification")}
APART |= {(one, "sanitizing") for one in ("audit", "training", "certification")}
APART |= {("sanitizing", one) for one in ("audit", "training", "certification")}
APART |= {("purifiers", "nets"), ("purifiers", "threat_models")}
APART |= {("threat_models", "purifiers"), ("cli", "commands")}  # the console command imports them by name, when asked
EXTERNAL = {"hydra": {"runs/compose.py", "runs/by_dataset.py", "runs/errors.py", "runs/words.py", "commands/run.py"}}
EXTERNAL |= {"omegaconf": EXTERNAL["hydra"], "wandb": {"output/tracking.py"}}
MODULES = sorted(DP.rglob("*.py"))


def imported(source: str) -> Iterator[str]:
    """The dotted name of every module or member that a source imports, wherever it does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: str) -> str:
    return path.partition("/")[0].removesuffix(".py")


def forbidden(module: str, source: str) -> list[str]:
    """What a module, by its path below dp/, must not import; a line each."""
    here, found = room(module), []
    for name in imported(source):
        top, _, rest = name.partition(".")
        there = rest.partition(".")[0]
        if top in EXTERNAL and module not in EXTERNAL[top]:
            found.append(f"{module} imports {top}")
        if top != "dp" or there == here:
            continue
        if FLOOR[there] > FLOOR[here] or (here, there) in APART:
            found.append(f"{module} imports {name}")
    return found


def test_every_room_has_its_floor():
    rooms = {room(path.relative_to(DP).as_posix()) for path in MODULES} - {"__init__"}
    assert rooms <= set(FLOOR)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(DP).as_posix())
def test_imports_point_down(path):
    assert forbidden(path.relative_to(DP).as_posix(), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("nets/wrn.py", "from dp.diffusion import sampling", 1),
        ("diffusion/sampling.py", "import dp.nets.wrn", 0),
        ("attacks/spsa.py", "def f():\n    from dp.purifiers import none", 1),
        ("purifiers/none.py", "from dp.attacks.base import Attack", 1),
        ("audit/check.py", "from dp.training import tasks", 1),
        ("runs/build.py", "from dp.commands.run import main", 1),
        ("commands/fetch.py", "from dp.runs.build import build", 0),
        ("output/report.py", "import hydra", 1),
        ("runs/compose.py", "import hydra", 0),
        ("output/record.py", "from wandb.sdk import x", 1),
        ("files/cache.py", "from dp.subset import Subset", 0),
    ],
)
def test_the_rule_itself(module, source, found):
    assert len(forbidden(module, source)) == found
