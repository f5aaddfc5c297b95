"""The study of our attacks beside a package's: its table and its page come from what it measured."""

import json
import re
from pathlib import Path

import package_attacks
from package_attacks import CASES, MEASURED, TABLE, measure, text, verdicts
from scipy.stats import permutation_test

CODES = ("ours", "package")
PAGE = " ".join((Path(__file__).parents[2] / "docs" / "validation.md").read_text().split())


def test_the_table_and_the_page_are_of_what_was_measured():
    measured = json.loads(MEASURED.read_text())
    assert {len(entry["right"]) for entry in measured} == {512}
    assert text(measured) == TABLE.read_text()
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(CASES)
    assert all(line in PAGE for line in lines)


def test_the_differences_on_the_page_are_those_of_the_means():
    measured = json.loads(MEASURED.read_text())
    share = {(name, c): 100 * sum(v.mean() for v in verdicts(measured, name, c)) / 5 for name in CASES for c in CODES}
    ours, package = ([share[name, code] for name in CASES] for code in CODES)
    more = [round(a - b, 2) for a, b in zip(ours, package, strict=True)]
    pattern = r"each time: ([.\d]+) and ([.\d]+) points for APGD, and ([.\d]+) for Square"
    (quoted,) = re.findall(pattern, PAGE)
    assert [float(number) for number in quoted] == more[:3]
    (p,) = re.findall(r"p is ([.\d]+) or more by permutation of the seeds", PAGE)
    means = {(name, c): [v.mean() for v in verdicts(measured, name, c)] for name in CASES for c in CODES}
    tests = [permutation_test([means[name, c] for c in CODES], _apart, n_resamples=9999).pvalue for name in CASES]
    assert float(p) == round(float(min(tests)), 2)
    (less,) = re.findall(r"leaves ([.\d]+) points less than the published rule", PAGE)
    assert float(less) == round(ours[2] - ours[3], 2)


def _apart(ours, package, axis=-1):
    return ours.mean(axis=axis) - package.mean(axis=axis)


def test_both_codes_attack_within_the_ball_and_agree_on_clear_images(monkeypatch):
    monkeypatch.setattr(package_attacks, "SEEDS", (0,))
    first = next(iter(CASES))
    mine, theirs = measure(first, CASES[first], 8)
    assert (mine["code"], theirs["code"]) == CODES
    assert mine["right"] == theirs["right"]
    assert set(mine["right"]) == {"0", "1"}
