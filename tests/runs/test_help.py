"""The help of the command, and what it is made of."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dp.runs import help
from dp.runs.compose import CONF, GROUPS
from tests.helpers.compose import composed

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "pandas", "matplotlib", "numpy")  # a person who asks for help does not wait for them


def python(code: str, *args: str, folder: Path = ROOT) -> str:
    """What a fresh process prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def printed() -> str:
    """The help as Hydra prints it, and the heavy modules that were imported for it."""
    code = (
        "import sys; from dp.commands.run import main; sys.argv[0] = 'run.py'\n"
        "try: main()\nexcept SystemExit as ended: assert not ended.code\n"  # Hydra's way
        f"print('heavy:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    return python(code, "--help")


def test_help_is_short_and_imports_nothing_heavy(printed):
    *lines, last = printed.rstrip().splitlines()
    assert last == "heavy: []"
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120


def test_help_names_every_option_that_is_no_alias(printed):
    words = {word.strip(",;") for word in printed.split()}
    for group in (*GROUPS, "experiment"):
        for path in (CONF / group).rglob("*.yaml"):
            alias = list(yaml.safe_load(path.read_text()) or {}) == ["defaults"] and "#" not in path.read_text()
            assert (path.stem in words) or alias, path
    assert "imagenette" in printed.split("classifier")[0]  # the dataset ...
    assert "imagenette" not in printed.split("classifier")[1]  # ... but not the aliases of its name


@pytest.mark.parametrize("name", ["exit codes", "--cfg job", "python run.py +experiment=table1/hetero", "(default)"])
def test_help_says(name, printed):
    assert name in printed


def test_examples_compose():
    for given, _ in help.EXAMPLES:
        words = given.split()
        if "--config-dir" in words:
            continue
        words = [word.partition(",")[0] for word in words if word != "-m"]
        assert composed(*words)["choices"]


@pytest.mark.parametrize("module", ["dp", "dp.cli", "dp.runs.compose", "dp.runs.errors"])
def test_imports_that_stay_light(module):
    assert python(f"import sys, {module}; print(sorted(set({HEAVY!r}) & set(sys.modules)))") == "[]\n"


def test_descriptions_are_first_comment_lines(tmp_path):
    found = help.described("purifier")
    first = (CONF / "purifier" / "diffpure.yaml").read_text().splitlines()[0]
    assert f"# {found['diffpure']}" == first
    assert "cifar10" in help.options("classifier")
    assert "cifar10" not in help.described("classifier")  # an alias
    presets = help.described("experiment")
    assert not any(line.startswith(("@", "python")) for line in presets.values())
    assert all(presets.values())
    (tmp_path / "purifier" / "deep").mkdir(parents=True)
    (tmp_path / "purifier" / "mine.yaml").write_text("# A method of mine.\n_target_: mine.purify\n")
    (tmp_path / "purifier" / "deep" / "bare.yaml").write_text("_target_: mine.purify\n")
    ours = help.described("purifier", [tmp_path])
    assert ours == {**found, "mine": "A method of mine.", "deep/bare": ""}


@pytest.mark.parametrize(
    ("text", "alias"),
    [
        ("defaults: [wrn_28_10]\n", True),
        ("defaults: [wrn_28_10]  # the paper's\n", False),
        ("defaults: [a, b]\n", False),
        ("defaults: [a]\nx: 1\n", False),
        ("_target_: a.b\n", False),
        ("", False),
    ],
)
def test_aliases(text, alias):
    assert help.is_alias(text) is alias


def test_help_lists_plugins(tmp_path):
    (tmp_path / "purifier").mkdir()
    (tmp_path / "purifier" / "mine.yaml").write_text("# Costs $5 and ${more}.\n_target_: mine.purify\n")
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack" / "my$attack.yaml").write_text("# Mine.\n_target_: mine.attack\n")
    code = "from dp.commands.run import main; main()"
    printed = python(code, "--help", "--config-dir", str(tmp_path))
    assert ", mine, " in printed
    assert "my$attack" in printed  # Hydra's template takes no offense
