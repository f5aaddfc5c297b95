"""What is committed of measured runs agrees with the code of today: intervals, commands, ranges, lengths."""

import json
import re
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import switches
from rich.console import Console

from dp.audit.battery import checks
from dp.evaluation.work import Pricing, in_evaluations, priced, total
from dp.output import report
from dp.runs.build import build
from dp.runs.keys import run_key
from dp.statistics.intervals import interval
from tests.docs import figures
from tests.helpers.compose import composed

ROOT = Path(__file__).parents[2]
RUNS = sorted(path.parent for path in figures.MEASURED.glob("*/summary.json"))
SIDES = [side for side in figures.SIDES if not side.endswith("seen")]


def page(name: str) -> str:
    return " ".join((ROOT / name).read_text().split())


@pytest.mark.parametrize("rule", ["single", "average", "worst"])
def test_every_interval_is_of_todays_rule(rule):
    assert len(RUNS) > 100
    for folder in RUNS:
        summary = json.loads((folder / "summary.json").read_text())
        for side in SIDES:
            if rule in summary.get(side, {}):
                now = interval(figures.right(folder, side, rule))
                assert np.allclose(summary[side][rule]["wilson95"], [100 * end for end in now]), (folder.name, side)


@pytest.mark.parametrize("name", switches.SWITCHES)
def test_a_line_of_the_switches_is_the_run_of_its_overrides(name):
    overrides = switches.SWITCHES[name]
    (line,) = [cells for cells in figures.table("switches.md") if cells[0] == name]
    assert line[8:] == ([" ".join(overrides)] if overrides else [])
    given = "purifier=hetero_official protocol.images=64 protocol.seeds=[2024]"
    assert f"every line adds its overrides to `{given}`" in page("results/tables/switches.md")
    folder = figures.MEASURED / run_key(composed(*given.split(), "protocol=official", *overrides))
    robust = json.loads((folder / "summary.json").read_text())["robust"]["vote"]
    assert line[4] == f"{robust['value']:.1f}"
    assert line[5] == "{:.1f} - {:.1f}".format(*robust["wilson95"])


def test_the_coverage_on_the_page_is_that_of_the_table():
    rows = [cells for cells in figures.table("coverage.md") if len(cells) == 14 and cells[1][0].isdigit()]
    middle = [float(cell) for cells in rows for cell in cells[5:12]]  # truths from 5 to 95 %
    said = f"in {min(middle)} to {max(middle)} % of the cases, for 512 images and true values from 5 to 95 %"
    assert said in page("docs/evaluation.md")


def test_the_text_of_the_main_study_has_at_most_300_words():
    text = (ROOT / "docs" / "findings.md").read_text().partition("\n## The main study\n")[2].partition("\n###")[0]
    text = re.sub(r"<!--.*?-->|!\[.*?\]\(.*?\)", " ", text, flags=re.DOTALL)
    assert 200 < len(text.split()) <= 300


def test_the_row_of_the_readme_is_the_archived_run_of_its_command():
    key = run_key(composed())
    (block,) = re.findall(r"<!-- generated: row -->\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block.startswith(f"{key}\n")
    shown = Console(width=120, record=True, file=StringIO())
    report.show(json.loads((figures.MEASURED / key / "summary.json").read_text()), shown)
    row, said = ([line.strip() for line in text.splitlines() if line.strip()] for text in (shown.export_text(), block))
    assert row[0] in said
    assert row[: len(said) - said.index(row[0])] == said[said.index(row[0]) :]


def test_the_deviation_of_me_net_says_what_each_gradient_finds():
    (said,) = re.findall(
        r"`strict` leaves ([\d.]+) % by the exact gradient, ([\d.]+) % by the projection and ([\d.]+) % by BPDA",
        page("docs/deviations.md"),
    )
    table = pd.read_csv(figures.MEASURED.parent / "tables" / "defenses.csv").set_index(["side", "method"])["average"]
    found = [table["strict", name] for name in ("ME-Net", "ME-Net, projection", "ME-Net, BPDA")]
    assert said == tuple(f"{value:.1f}" for value in found)
    assert min(found) == found[2]


def test_the_readme_says_how_much_work_its_row_is():
    """For whatever the classifier's measured cost is, within reason."""
    made = build(composed())
    for ratio in (0.6, 0.7, 0.8):
        work = priced(made, Pricing(made.first, in_evaluations(ratio)))
        line = report.work_line(total(made.plan(), work, made.lanes))
        assert f"\n{line}\n" in (ROOT / "README.md").read_text()


def test_the_readme_says_how_many_checks_there_are():
    assert f"# {len(checks(quick=False))} checks: " in page("README.md")


def test_the_glossary_says_of_known_noise_what_the_findings_say():
    (said,) = re.findall(r"On `digits` (\d+) % remain", page("docs/concepts.md"))
    assert f"- {said} % where the attacker knows the sample" in page("docs/findings.md")
