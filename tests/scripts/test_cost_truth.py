"""The committed comparison of `cost=true` with runs: the table is that of the times, and the two agree."""

import json
import re
from statistics import fmean

import cost_truth
import pytest

from dp.output.report import clock


def test_the_table_is_that_of_the_times_and_the_estimate_is_within_15_percent():
    runs = json.loads(cost_truth.TIMES.read_text())
    assert cost_truth.TABLE.read_text() == cost_truth.text(runs)
    assert [one["run"] for one in runs] == [" ".join(words) for words in cost_truth.RUNS]
    for one in runs:
        assert len(one["estimated"]) == len(one["taken"]) == cost_truth.TURNS
        turns = [said / taken for said, taken in zip(one["estimated"], one["taken"], strict=True)]
        assert all(0.74 < turn < 1.26 for turn in turns), "off by up to a quarter, says docs/performance.md"
        assert fmean(one["estimated"]) == pytest.approx(fmean(one["taken"]), rel=0.15)
    page = " ".join((cost_truth.RESULTS.parent / "docs" / "performance.md").read_text().split())
    quoted = re.findall(r"the estimate was ([\d.]+) and ([\d.]+) of what the run then took", page)
    assert quoted == [tuple(f"{fmean(one['estimated']) / fmean(one['taken']):.2f}" for one in runs)]


@pytest.mark.parametrize("seconds", [7, 62, 3600, 4000, 40 * 3600 + 180])
def test_the_printed_time_is_read(seconds):
    rounded = seconds if seconds < 3600 else seconds // 60 * 60
    found = cost_truth.estimated(f"all of it: {clock(seconds)}, of which 9 s to start 3 processes")
    assert found == pytest.approx(rounded, abs=60 if seconds >= 3600 else 0)
