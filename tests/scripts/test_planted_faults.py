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


def test_the_committed_table_has_every_fault_and_every_sound_defense():
    lines = planted_faults.TABLE.read_text().splitlines()
    named = {line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")}
    assert {*faults.FAULTS, *faults.SOUND, *faults.PARTS} <= named
    assert "not explained" not in "\n".join(lines)
