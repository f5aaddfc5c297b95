"""The audit as a whole: its order, what a summary keeps, when a job is audited first, the command."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dp.audit import battery
from dp.audit.check import Finding, Subject
from dp.commands import audit as script
from dp.commands import run
from dp.output import report
from dp.runs import pipeline
from dp.runs.build import build
from dp.runs.keys import run_key
from dp.runs.sources import sources_hash
from tests.helpers.compose import TINY, composed, setup


class named:
    """A check that has the name of its function."""

    def __init__(self, of: Callable[[Subject], Finding]):
        self.of, self.name = of, of.__name__

    def __call__(self, subject: Subject) -> Finding:
        return self.of(subject)


@named
def passes(subject: Subject) -> Finding:
    return Finding("passes", f"{len(subject.images.ids)} images", "some", "PASS", "1 image", 0.5)


@named
def warns(subject: Subject) -> Finding:
    curve = {"x": [0, 1], "loss": [-1, 2], "best": [-1, 2]}
    return Finding("loss", "still rising", "flat", "WARN", "8 images", 1.5, curve)


@named
def fails(subject: Subject) -> Finding:
    return Finding("fails", "[0.3]", "0", "FAIL", "-", 0.0)


@named
def stops(subject: Subject) -> Finding:
    raise ValueError("need finite losses, got NaN")


@named
def notes(subject: Subject) -> Finding:
    return Finding("notes", "nothing to compare it with", "-", "INFO", "-", 0.0)


@pytest.fixture
def few(monkeypatch):
    """These checks in place of all others."""

    def use(*given):
        monkeypatch.setattr(battery, "checks", lambda quick: given)

    return use


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return [*TINY, "workers=1", "protocol.images=2", "protocol.seeds=[5]", "protocol.votes=2", "dataset.lanes=2"]


@pytest.fixture(scope="module")
def subject() -> Subject:
    job = pipeline.built(setup(*TINY), Path("unused"), "some code")
    return pipeline.subject_of(job, images=2, quick=True)


def test_checks_run_in_order_and_an_error_is_a_failure(few, subject):
    few(passes, stops, warns)
    asked = []
    found = list(battery.audit(subject, lambda *given: asked.append(given)))
    assert asked == [(0, 3, "passes"), (1, 3, "stops"), (2, 3, "warns")]
    assert [(f.check, f.verdict) for f in found] == [("passes", "PASS"), ("stops", "FAIL"), ("loss", "WARN")]
    assert found[0].value == "2 images"
    assert found[1].value == "stopped: need finite losses, got NaN"


def test_the_quick_audit_is_part_of_the_whole_one():
    quick, whole = battery.checks(quick=True), battery.checks(quick=False)
    assert 0 < len(quick) < len(whole)
    assert [check for check in whole if check in quick] == list(quick)


def test_a_summary_keeps_counts_and_what_did_not_pass(subject):
    found = [check(subject) for check in (passes, warns, notes, fails)]
    entry = battery.entry(found, quick=False)
    assert {v: entry[v] for v in ("PASS", "WARN", "FAIL", "INFO")} == dict.fromkeys(("PASS", "WARN", "FAIL", "INFO"), 1)
    assert (entry["checks"], entry["seconds"], entry["quick"]) == (4, 2.0, False)
    assert [f["check"] for f in entry["findings"]] == ["loss", "notes", "fails"]
    assert json.loads(json.dumps(entry)) == entry
    assert report.audit_word(entry) == "audited: 4 checks, 1 FAIL, 1 WARN"
    assert report.audit_lines(entry) == [
        "AUDIT FAILED, do not trust this row: fails: [0.3] (need 0)",
        "audit warns: loss: still rising (need flat)",
    ]


def test_an_audit_counts_for_the_code_that_made_it(subject, tmp_path):
    found = [passes(subject)]
    battery.write(tmp_path / "audit.json", "this code", found, quick=True)
    assert battery.read(tmp_path / "audit.json", "this code") == battery.entry(found, quick=True)
    assert battery.read(tmp_path / "audit.json", "other code") is None
    assert battery.read(tmp_path / "none.json", "this code") is None


def test_network_evaluations_of_an_attack_are_counted(monkeypatch):
    """PGD on a network that counts: 5 images, a seed, 3 steps of 2 samples, 4 denoising steps and the classifier."""
    given = ("protocol.images=5", "protocol.seeds=[5]", "attack.iterations=3", "attack.eot=2", "dataset.lanes=5")
    evaluation = build(composed(*given, "purifier=diffpure", "purifier.steps=4", "memory=store"))
    arm, calls = evaluation.arms["defended"], []
    assert arm.scored.denoiser is not None
    for net in (arm.scored.denoiser.net, arm.scored.classifier.net):
        net.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    (unit,) = (unit for unit in evaluation.plan() if unit.arm == "defended")
    monkeypatch.setattr(type(evaluation), "_score", lambda *given: torch.zeros(5, 2, 10))
    evaluation.run(unit)
    assert sum(calls) == battery.network_evaluations(evaluation, nfe=4) == 5 * 3 * 2 * (4 + 1)


@pytest.mark.parametrize(
    ("overrides", "long"),
    [([], False), (["+experiment=digits/hetero"], True), (["attack=none"], False), (["protocol=strict"], False)],
)
def test_auto_is_for_long_jobs(overrides, long):
    evaluation = build(composed(*overrides))
    assert battery.due("auto", evaluation, nfe=8) is long
    assert battery.due(True, evaluation, nfe=8)
    assert not battery.due(False, evaluation, nfe=8)


def row(monkeypatch, capsys, *overrides: str) -> tuple[int, str, str, Path]:
    """Exit code, stdout, stderr and the folder of `python run.py overrides...`, in this process."""
    monkeypatch.setattr(sys, "argv", ["run.py", *overrides])
    code, (out, err) = run.main(), capsys.readouterr()
    return code, out, err, Path(out.rstrip().splitlines()[-1].removeprefix("results: ")) if out.strip() else Path()


def test_a_row_says_what_its_audit_found_and_does_not_change(tiny, few, monkeypatch, capsys):
    few(passes, fails, notes)
    code, out, _, plain = row(monkeypatch, capsys, *tiny, "results=plain")
    assert code == 0
    assert "broken by softmax; unaudited" in out
    assert not (plain / "audit.json").exists()
    code, out, _, folder = row(monkeypatch, capsys, *tiny, "audit=true")
    assert code == 0
    assert out.count("AUDIT FAILED, do not trust this row: fails: [0.3] (need 0)") == 2  # before the job, with its row
    assert "broken by softmax; audited: 3 checks, 1 FAIL, 0 WARN" in out
    kept = json.loads((folder / "audit.json").read_text())
    assert [f["check"] for f in kept["findings"]] == ["passes", "fails", "notes"]
    assert json.loads((folder / "summary.json").read_text())["audited"] == kept["entry"]
    assert (folder / "images.jsonl").read_bytes() == (plain / "images.jsonl").read_bytes()
    assert folder.name == plain.name


def test_a_finished_run_is_audited_on_demand_and_keeps_its_rows(tiny, few, monkeypatch, capsys):
    few(passes, fails)
    _, _, _, folder = row(monkeypatch, capsys, *tiny, "audit=false")
    rows = (folder / "images.jsonl").read_bytes()
    code, out, _, _ = row(monkeypatch, capsys, *tiny, "audit=true")
    assert code == 0
    assert "audited: 2 checks, 1 FAIL, 0 WARN" in out
    assert json.loads((folder / "summary.json").read_text())["audited"]["FAIL"] == 1
    assert (folder / "images.jsonl").read_bytes() == rows
    few(passes, warns)
    assert command(capsys, *tiny, "--images", "1")[0] == 0  # the full one takes its place
    kept = json.loads((folder / "summary.json").read_text())["audited"]
    assert (kept["quick"], kept["WARN"]) == (False, 1)


def test_a_job_is_audited_once(tiny, few, monkeypatch, capsys):
    asked = []

    @named
    def counts(subject: Subject) -> Finding:
        asked.append(subject.quick)
        return passes(subject)

    few(counts)
    for shard in ("1/2", "2/2"):
        assert row(monkeypatch, capsys, *tiny, "audit=true", f"shard={shard}")[0] == 0
    assert asked == [True]
    assert row(monkeypatch, capsys, *tiny, "audit=true", "overwrite=true")[0] == 0
    assert asked == [True, True]


def test_a_wrong_value_of_audit_is_one_line(tiny, monkeypatch, capsys):
    code, _, err, _ = row(monkeypatch, capsys, *tiny, "audit=maybe")
    assert (code, err) == (2, "error: need audit auto, true or false, got audit=maybe\n")


def command(capsys, *given: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `dp audit given...`."""
    return script.main(given), *capsys.readouterr()


@pytest.mark.parametrize(("checks", "code"), [((passes, warns, notes), 0), ((warns, fails), 1)])
def test_command(checks, code, tiny, few, capsys):
    few(*checks)
    found, out, _ = command(capsys, *tiny, "--images", "1")
    assert found == code
    (path,) = Path("results/audits").glob("*.json")
    assert path.stem == run_key(composed(*tiny))
    assert path.with_suffix(".png").stat().st_size > 10_000
    kept = json.loads(path.read_text())
    assert kept["images"] == 1
    assert kept["code"] == sources_hash(composed(*tiny))
    for f in kept["findings"]:
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [f["check"]]]
        assert f["verdict"] in line
        assert f["value"] in line
    assert f"results: {path.with_suffix('.json')}, .png" in out


def test_the_quick_audit_of_the_benchmark_finds_nothing_broken(tiny, capsys):
    code, out, _ = command(capsys, *tiny, "--quick", "--images", "2")
    assert code == 0, out
    assert " 0 FAIL" in out
    (path,) = Path("results/audits").glob("*.json")
    assert path.stem == f"{run_key(composed(*tiny))}-quick"  # beside the whole audit's
    kept = json.loads(path.read_text())
    assert kept["entry"]["quick"]
    assert kept["entry"]["checks"] == len(battery.checks(quick=True)) == len({f["check"] for f in kept["findings"]})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["purifier=hetro"], "unknown option purifier=hetro (did you mean hetero"),
        (["--images", "0"], "need --images >= 1, got 0"),
        (["purifier.t_s=0.3"], "need 0 < t_s <= t_l <= 1"),
    ],
)
def test_commands_errors_are_one_line(given, said, tiny, capsys):
    code, _, err = command(capsys, *tiny, *given)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
