"""The study of the audit: what it counts as found, and that the committed table is of today's faults."""

import faults
import planted_faults
import pytest

NAME = "tanh of logits"


def findings(**statuses: str) -> list[dict]:
    """One finding for each check, that says what the fault's check should say."""
    words = faults.FAULTS[NAME].words
    return [{"check": check, "status": status, "value": f"{words}; more"} for check, status in statuses.items()]


@pytest.mark.parametrize(
    ("quick", "whole", "counted"),
    [
        (findings(outputs="FAIL"), findings(outputs="FAIL", derivative="FAIL"), ("1 of 1", "1 of 1")),
        (findings(derivative="FAIL"), findings(outputs="FAIL"), ("0 of 1", "1 of 1")),
        (findings(outputs="WARN"), [], ("0 of 1", "0 of 0")),
    ],
)
def test_a_fault_counts_if_the_check_named_for_it_finds_it(quick, whole, counted):
    text = planted_faults.report({NAME: (quick, whole)})
    assert f"finds {counted[0]} faults in the quick audit and {counted[1]} in the whole audit" in text


def test_failures_and_warnings_of_sound_defenses_are_told():
    name = next(iter(faults.SOUND))
    text = planted_faults.report({name: (findings(EOT="WARN"), findings(EOT="WARN", step="FAIL", methods="WARN"))})
    assert "of 1 sound defenses 1 fail." in text
    assert "- EOT: gradients of 4 samples are noisy" in text
    assert "- methods: not explained." in text


def rows(title: str) -> dict[str, list[str]]:
    """The committed table of this title: cells by name."""
    part = planted_faults.TABLE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return {name: rest for name, *rest in cells[2:]}


def test_each_audit_finds_every_fault_of_the_committed_table_that_its_checks_can():
    found = rows("Planted faults")
    assert set(found) == set(faults.FAULTS)
    for name, (check, quick, whole, *_) in found.items():
        fault = faults.FAULTS[name]
        assert (check, quick, whole) == (fault.check, fault.status, fault.status), name


def test_no_sound_defense_of_the_committed_table_fails():
    """An audit warns of one thing at most. Of the purifiers that have the quick audit alone, those that take gradients
    themselves and ME-Net have two warnings, and MimicDiffusion, whose gradient is no derivative, has three.
    """
    found = rows("Sound defenses")
    assert set(found) == set(planted_faults.SOUND)
    for name, (quick, said, whole, told, _) in found.items():
        alone = name in faults.QUICK_ALONE
        assert (quick, whole) == ("0 FAIL", "-" if alone else "0 FAIL"), name
        warned = [{*words.split(", ")} - {"-"} for words in (said, told)]
        assert len(warned[0]) <= 1 + alone + (name == "mimic"), name
        assert len(warned[1]) <= 1, name
        assert warned[0] | warned[1] <= set(planted_faults.WARNINGS), name


def test_the_committed_table_has_every_fault_and_every_sound_defense():
    lines = planted_faults.TABLE.read_text().splitlines()
    named = {line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")}
    assert {*faults.FAULTS, *faults.SOUND, *faults.PARTS} <= named
    assert "not explained" not in "\n".join(lines)
