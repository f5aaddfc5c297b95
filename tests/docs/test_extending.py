"""The examples of docs/extending.md, copied out, run outside the tree and held to the contract tests."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dp.commands import train
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
    "attack": {
        "tests/attacks/test_attacks.py": ["test_contract[name-linf]", "test_contract[name-l2]"],
        "tests/attacks/test_shards.py": ["test_two_shards_give_the_rows_of_one_run[name]"],
    },
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
    (script,) = [command[1] for command in COMMANDS if command[0] == "python" and command[1] != "run.py"]
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
    assert groups == {"purifier", "attack", "dataset", "classifier", "denoiser", "threat_model", "protocol", "training"}
    assert all("--config-dir" in command for command in RUNS)
    run = {word.partition("=")[0] for command in RUNS for word in command[4:]}
    assert groups - {"classifier", "denoiser", "training"} <= run  # the first two go with their dataset


@pytest.mark.parametrize("command", RUNS, ids=lambda command: " ".join(command[4:]))
def test_an_example_runs_outside_the_tree(command, inside, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", *command[2:], *SMALL, f"results={tmp_path}"])
    code = main()
    out, err = capsys.readouterr()
    assert code == 0, err
    assert_row(tmp_path, command)
    declared = {line for line in out.splitlines() if line.startswith("declared: ")}
    if "purifier=bits" in command:  # attacked by the gradient that it names, and the page shows what the row says
        (line,) = declared
        assert line in PAGE.splitlines()
        (summary,) = tmp_path.glob("*/summary.json")
        assert json.loads(summary.read_text())["caveats"]["gradients"] == [["bpda"]]
    else:
        kink = "the purifier median has a derivative that is not the slope everywhere (median: kink at ties)"
        assert declared == ({f"declared: {kink}"} if "purifier=median" in command else set())


def test_a_task_trains_outside_the_tree(inside, tmp_path):
    """The page's command, with two steps, writes weights, and the judge its table."""
    (command,) = [command for command in COMMANDS if command[:2] == ["dp", "train"]]
    small = ["training.steps=2", "training.batch=8", "training.test_images=8", "+training.log_every=1"]
    assert train.main([*command[2:], *small, f"results={tmp_path}"]) == 0
    assert (inside / "noisy.safetensors").exists()
    (table,) = tmp_path.glob("train-digits-classifier-*/judge.csv")
    assert table.read_text().startswith("class,images,accuracy\n")


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
    for exception in ("bits: gradient: rounding has", "median: derivative: median: kink at ties"):
        assert f"\npurifier {exception}" in done.stdout
    cases = ElementTree.parse(tmp_path / "found.xml").iter("testcase")
    found = {(case.attrib["classname"].replace(".", "/") + ".py", case.attrib["name"]) for case in cases}
    assert expected <= found


WRONG = {  # a file of the page, the file and the text that take its place, and the replaced text
    "momentum.py": ("batchwise.py", "gradient.abs().mean(dim=(1, 2, 3), keepdim=True)", "gradient.abs().mean()"),
    "smooth.py": ("careless.py", "rng.randn_like(x0)", "torch.randn_like(x0)"),
}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory) -> Path:
    """A folder with faulty plug-ins, made of the page's."""
    page, made = examples.files(PAGE), tmp_path_factory.mktemp("wrong")
    for group in ("attack", "purifier"):
        (made / "mine" / group).mkdir(parents=True)
    for source, (file, text, fault) in WRONG.items():
        assert text in page[source]
        (made / file).write_text("import torch\n" + page[source].replace(text, fault))
    (made / "speechless.py").write_text(page["momentum.py"].replace("def says(", "def said("))
    (made / "median.py").write_text(page["median.py"])
    for group, old, new in (
        ("attack", "momentum", "batchwise"),
        ("attack", "momentum", "speechless"),
        ("purifier", "smooth", "careless"),
        ("purifier", "median", "median"),
    ):
        yaml = page[f"mine/{group}/{old}.yaml"].replace(f"_target_: {old}.", f"_target_: {new}.")
        name = "undeclared" if old == "median" else new
        (made / "mine" / group / f"{name}.yaml").write_text(yaml.partition("exceptions:")[0])
    return made


def test_a_faulty_plug_in_fails_its_contract_in_sentences(wrong):
    """One line for each test that fails, without a traceback and without a tensor."""
    files = ("attacks/test_attacks.py", "attacks/test_shards.py", "purifiers/test_purifiers.py")
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--config-dir=mine", "--tb=short"]
    words += ["-k", "batchwise or speechless or careless or undeclared"]
    words += [str(ROOT / "tests" / file) for file in (*files, "defense/test_gradients.py")]
    done = subprocess.run([sys.executable, *words], cwd=wrong, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout[-3000:]
    told = done.stdout.partition("= FAILURES =")[2].partition("short test summary")[0]
    assert "tensor(" not in told
    assert "Traceback" not in told
    assert "another exception" not in told
    lines = [line for line in told.splitlines() if line.startswith(("attack ", "purifier "))]
    for beginning, cause in (
        ("attack batchwise: batch mates: ", "a mean, norm, sort or maximum over the whole batch"),
        ("attack batchwise: shards: ", "a mean, norm, sort or maximum over the whole batch"),
        ("attack speechless: need speechless.Momentum (attack) to define says", "see docs/extending.md"),
        ("purifier careless: need a purifier that answers the same", "draw noise by rng.randn_like(x) alone"),
        ("purifier undeclared: derivative: ", "a kink (median, max, sort, abs at ties)"),
    ):
        assert any(line.startswith(beginning) and cause in line for line in lines), (beginning, told)
    (shown,) = [line for line in PAGE.splitlines() if line.startswith("attack momentum: batch mates: ")]
    without_numbers = {re.sub(r"\d[\d.e+-]*", "N", line) for line in lines}
    assert re.sub(r"\d[\d.e+-]*", "N", shown.replace("momentum", "batchwise")) in without_numbers


def test_a_run_with_an_attack_without_a_method_is_one_line(wrong, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(wrong)
    monkeypatch.syspath_prepend(wrong)
    monkeypatch.setattr(sys, "argv", ["run.py", "--config-dir", "mine", "attack=speechless", f"results={tmp_path}"])
    assert main() == 2
    said = capsys.readouterr().err
    expected = "need speechless.Momentum (attack) to define says, got a class without it: see docs/extending.md"
    assert said == f"error: {expected}\n"


@pytest.mark.parametrize(("name", "found"), [("median", "WARN"), ("bits", "WARN")])
def test_the_audit_warns_of_what_is_declared_and_does_not_fail(name, found, inside, tmp_path, monkeypatch, capsys):
    words = ["--config-dir", "mine", f"purifier={name}", *SMALL, "audit=true", f"results={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    assert main() == 0, capsys.readouterr().err
    (summary,) = tmp_path.glob("*/summary.json")
    audited = json.loads(summary.read_text())["audited"]
    assert audited["FAIL"] == 0
    assert [f["verdict"] for f in audited["findings"] if f["check"] == "derivative"] == [found]
