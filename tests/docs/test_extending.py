"""The examples of docs/extending.md, copied out, run outside the tree and held to the contract tests."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dp.commands.run import main
from tests.docs import examples

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
COMMANDS = examples.commands(PAGE)
RUNS = [command for command in COMMANDS if command[:2] == ["python", "run.py"]]
SMALL = (
    *("protocol.images=4", "protocol.seeds=[2024]", "protocol.votes=3", "attack.iterations=2", "attack.eot=2"),
    *("workers=1", "audit=false"),
)
CONTRACTS = {  # of what an example adds, by the file that holds it; `name` stands for the option
    "purifier": {
        "tests/purifiers/test_purifiers.py": ["test_contract[name]"],
        "tests/defense/test_gradients.py": [
            "test_full_gradient_equals_central_differences[name]",
            "test_recompute_equals_store_bit_for_bit[name]",
        ],
    },
    "attack": {"tests/attacks/test_attacks.py": ["test_contract[name-linf]", "test_contract[name-l2]"]},
    "dataset": {"tests/test_datasets.py": ["test_contract[name]"]},
    "classifier": {"tests/test_classifiers.py": ["test_contract[name]"]},
    "denoiser": {"tests/diffusion/test_denoisers.py": ["test_contract[name]"]},
    "threat_model": {
        "tests/threat_models/test_ball.py": ["test_contract[name]", "test_projections_are_feasible[name]"]
    },
    "protocol": {
        "tests/runs/test_protocols.py": [
            "test_a_protocol_sets_its_attack_and_its_gradient[name]",
            "test_contract[name]",
        ],
        "tests/runs/test_caveats.py": ["test_a_protocol_as_it_is_defined_has_no_departure[name]"],
    },
}
BINDS = {  # every option of a group composes and fits its signature
    **dict.fromkeys(("dataset", "classifier", "denoiser"), "test_every_dataset_classifier_and_denoiser_binds"),
    **dict.fromkeys(
        ("purifier", "attack", "threat_model", "protocol"), "test_every_option_composes_and_binds_for_every_dataset"
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working folder with the page's files, and what its script makes of them."""
    made = tmp_path_factory.mktemp("outside")
    examples.write(PAGE, made)
    (script,) = [command[1] for command in COMMANDS if command[1] != "run.py"]
    subprocess.run([sys.executable, script], cwd=made, check=True, capture_output=True)
    return made


@pytest.fixture
def inside(folder, monkeypatch) -> Path:
    """The same as the folder that this process works in."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PWD", str(folder))
    monkeypatch.syspath_prepend(folder)  # and taken off in the end
    return folder


def options_of(group: str) -> list[str]:
    """The options of a group that the page's examples make."""
    return sorted(Path(name).stem for name in examples.files(PAGE) if Path(name).parts[:2] == ("mine", group))


def assert_row(results: Path, command: list[str]) -> None:
    """The run of a command left a summary of what it chose."""
    (summary,) = results.glob("*/summary.json")
    found = json.loads(summary.read_text())
    assert found["robust"]["single"]["n"] == 4
    chosen = dict(word.split("=", 1) for word in command[4:])
    for group, option in chosen.items():
        if group in found["config"]["choices"]:
            assert found["config"]["choices"][group] == option


def test_every_kind_has_an_example():
    groups = {Path(name).parts[1] for name in examples.files(PAGE) if name.startswith("mine/")}
    assert groups == {"purifier", "attack", "dataset", "classifier", "denoiser", "threat_model", "protocol"}
    assert all("--config-dir" in command for command in RUNS)
    run = {word.partition("=")[0] for command in RUNS for word in command[4:]}
    assert groups - {"classifier", "denoiser"} <= run  # these two go with their dataset


@pytest.mark.parametrize("command", RUNS, ids=lambda command: " ".join(command[4:]))
def test_an_example_runs_outside_the_tree(command, inside, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", *command[2:], *SMALL, f"results={tmp_path}"])
    assert main() == 0, capsys.readouterr().err
    assert_row(tmp_path, command)


def test_a_plug_in_is_found_in_the_working_folder(folder, tmp_path):
    """As a user starts it, without PYTHONPATH."""
    words = [str(ROOT / "run.py"), *RUNS[0][2:], *SMALL, f"results={tmp_path}"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_row(tmp_path, RUNS[0])


def test_what_is_outside_the_tree_passes_the_contract_tests(folder, tmp_path):
    """pytest CHECKOUT/tests --config-dir=mine -k NAME in the folder of mine, for all examples at once."""
    expected = {
        (file, test.replace("name", name))
        for group, contracts in CONTRACTS.items()
        for name in options_of(group)
        for file, tests in contracts.items()
        for test in tests
    }
    expected |= {
        ("tests/runs/test_configs.py", f"{test}[{group}-{name}]")
        for group, test in BINDS.items()
        for name in options_of(group)
    }
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--config-dir=mine"]
    names = " or ".join(sorted({name for group in BINDS for name in options_of(group)}))
    words += ["-k", names, f"--junit-xml={tmp_path}/found.xml", *sorted({str(ROOT / file) for file, _ in expected})]
    environment = {**os.environ, "PWD": str(folder)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    cases = ElementTree.parse(tmp_path / "found.xml").iter("testcase")
    found = {(case.attrib["classname"].replace(".", "/") + ".py", case.attrib["name"]) for case in cases}
    assert expected <= found
