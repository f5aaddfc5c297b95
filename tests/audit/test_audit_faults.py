"""The audit's acceptance test: planted faults, each found by the check that is named for it in the quick audit, and a
sound run that fails no check. The study scripts/studies/planted_faults.py makes the whole audits.
"""

import faults
import pytest

from dp.audit import battery, randomness, rival_attacks, trajectory
from dp.audit.check import Subject
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from tests.helpers.audited import SMALL, composed_subject, copied, planted
from tests.helpers.compose import small_budget

CHECKS = battery.checks(quick=True)


@pytest.fixture(scope="module")
def sound() -> Subject:
    return composed_subject(*SMALL, "protocol.images=4", "protocol.votes=3", *small_budget("pgd_eot"))


@pytest.mark.parametrize("fault", faults.FAULTS)
def test_a_planted_fault_is_found_by_the_check_named_for_it(fault, sound, monkeypatch):
    plant, check, status, words = faults.FAULTS[fault]
    monkeypatch.setattr(battery, "checks", lambda quick: [c for c in CHECKS if c.name == check])
    (found,) = battery.audit(plant(sound))
    assert found.verdict == status, found
    assert words in found.value


def test_every_check_runs_where_some_fail(sound):
    found = list(battery.audit(faults.FAULTS["a detached purifier"].plant(sound)))
    assert [f.check for f in found] == [check.name for check in CHECKS]
    assert sum(f.verdict == "FAIL" for f in found) > 1


def test_there_are_faults_enough():
    """At least 20 are found, by at least ten different checks, so that no check stands for all of them."""
    assert len(faults.FAULTS) >= 20
    assert len({fault.check for fault in faults.FAULTS.values()}) >= 10


def test_of_a_sound_run_the_quick_audit_fails_no_check(sound):
    """The same run as the one in which the faults are planted."""
    assert [f for f in battery.audit(sound) if f.verdict == "FAIL"] == []


@pytest.mark.parametrize("part", faults.PARTS)
def test_of_sound_parts_that_are_not_in_the_tree_the_quick_audit_fails_no_check(part, sound):
    assert [f for f in battery.audit(faults.PARTS[part](sound)) if f.verdict == "FAIL"] == []


def test_of_a_sound_run_no_check_fails(monkeypatch):
    """With 8 images, so that McNemar's p can be small enough for a failure: its least value is .008."""
    for module, values in (
        (rival_attacks, {"QUERIES": 10, "STEPS": 4, "DIRECTIONS": 4, "BLIND": 5}),
        (trajectory, {"SAMPLES": 3}),
    ):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(rival_attacks, "_targets", lambda subject: 3)
    given = (*SMALL, "protocol.images=8", "protocol.votes=3", *small_budget("pgd_eot"))
    found = {f.check: f for f in battery.audit(composed_subject(*given, quick=False))}
    assert len(found) == len(battery.checks(quick=False))
    assert [f for f in found.values() if f.verdict == "FAIL"] == []
    passed = ("flags", "step", "derivative", "dead pixels", "radius", "outputs", "randomness", "batch", "memory")
    assert {found[name].verdict for name in (*passed, "same defense")} == {"PASS"}


def test_mean_and_std_applied_once_are_no_fault(sound):
    classifier = sound.arm.scored.classifier
    twin = Classifier(classifier.net, classifier.taps, mean=[0.2], std=[0.4])
    once = planted(sound, both=copied(Defended, sound.arm.scored, classifier=twin))
    assert randomness.decisions(once).verdict != "FAIL"
