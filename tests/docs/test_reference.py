"""The lists in docs/ are those of the code and the yamls."""

import re

import pytest

from dp.audit import battery
from dp.commands.reference import BLOCK, DOCS, filled, lists
from dp.runs.compose import GROUPS
from dp.statistics.metrics import RULES

PAGES = sorted(DOCS.glob("*.md"))


# docs/defenses.md is in tests/docs/test_defenses.py, block by block.
@pytest.mark.parametrize("path", [p for p in PAGES if p.stem != "defenses"], ids=lambda path: path.stem)
def test_generated_lists_are_up_to_date(path):
    page = path.read_text()
    assert filled(page) == page, "python scripts/reference.py writes them anew"


def test_every_list_stands_in_some_page():
    markers = [marker for path in PAGES for _, marker, _ in BLOCK.findall(path.read_text())]
    assert sorted(markers) == sorted(lists())
    assert {f"options {group}" for group in GROUPS} < set(markers)


def test_every_rule_and_check_has_words_and_a_heading():
    assert all(formula and meaning for formula, meaning in RULES.values())
    audit = (DOCS / "audit.md").read_text()
    for check in battery.checks(quick=False):
        assert re.search(rf"^### {re.escape(check.name)}$", audit, re.MULTILINE), check.name
        assert check.of.__doc__
