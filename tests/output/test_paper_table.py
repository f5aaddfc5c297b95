"""The paper's tables: published rows beside runs, from rows and summaries made by hand."""

import io
from fractions import Fraction

import pandas as pd
import pytest

from dp.output import paper_table
from dp.output.published import can_be_mean
from dp.output.table_text import escaped, latex, markdown
from tests.output.test_report import figure, summary

STAND_INS = {("1", "digits"): "digits for CIFAR-10"}
ROW = {"table": "1", "group": "AP", "method": "hetero", "printed": "Ours", "setting": "", "dataset": "cifar10"}
ROW |= {
    "classifier": "wrn_28_10",
    "norm": "linf",
    "eps": "8/255",
    "attack": "pgd_eot",
    "iterations": "200",
    "eot": "20",
}
ROW |= {"standard": "93.16", "standard_std": "0.21", "robust": "80.45", "robust_std": "1.25", "flag": "", "note": ""}
ROW |= {"source": "arXiv 2503.01407, Table 1"}
CELL = {"table": "1", "method": "hetero", "setting": "", "attack": "pgd_eot", "stand_in": "", "folder": "x", "note": ""}
CELL |= {"command": "+experiment=table1/hetero"}


def run(robust=41.2, **more):
    found = summary(robust=robust)
    for side in ("standard", "robust"):
        found[side]["mean_logits"] = figure(found[side]["single"]["value"] + 1, draws=20)
    found["config"]["attack"] = {"iterations": 200, "eot": 20}
    return found | more


def lines(found, what="", row=ROW, cell=CELL):
    return paper_table.lines([row], [cell], STAND_INS, lambda _: (found, what))


@pytest.mark.parametrize("images", [512, 64])
def test_a_value_can_be_a_mean_where_some_count_rounds_or_truncates_to_it(images):
    """Against all counts: every printed value of two decimals, rounded half up or truncated."""
    counts = [Fraction(100 * k, 3 * images) for k in range(3 * images + 1)]
    prints = {int(value * 100) for value in counts} | {int(value * 100 + Fraction(1, 2)) for value in counts}
    for hundredths in range(5000, 6000):
        text = f"{hundredths // 100}.{hundredths % 100:02d}"
        assert can_be_mean(text, images) == (hundredths in prints), text
    assert can_be_mean("63.6", 512)  # a tenth is wider than the distance between two counts
    assert not can_be_mean("80.45", 512)
    assert can_be_mean("59.38", 512)


def test_a_published_row_stands_beside_its_run_by_three_rules_with_differences():
    found, missing = lines(run())
    assert missing == []
    facts = paper_table.frame(found)
    assert facts["rule"].tolist() == ["mean logits of 20", "single sample", "vote of 20"]
    assert facts["robust"].tolist() == [42.2, 41.2, 41.7]
    assert facts["robust difference"].tolist() == [-38.25, -39.25, -38.75]
    assert facts["standard difference"].tolist() == [1.0, 0.0, 0.5]
    assert facts["robust seed std"].tolist() == [1.25] * 3
    assert facts["published robust"].tolist() == ["80.45"] * 3
    table, notes = paper_table.shown(found)
    assert table["robust, published"].tolist() == ["80.45±1.25 †", "", ""]
    assert table["rule"].tolist()[0] == "mean logits of 20 *"
    assert table["difference"].tolist() == ["-38.2", "-39.2", "-38.8"]
    assert notes == ["the exact gradient for a surrogate's (deviation 32: full gradient or surrogate)"]


def test_a_stand_in_has_no_difference_and_a_note_of_what_stands_for_what():
    found, _ = lines(run(), cell=CELL | {"stand_in": "digits", "note": "one network"})
    table, notes = paper_table.shown(found)
    assert set(table["difference"]) == {""}
    assert notes[:2] == ["digits for CIFAR-10", "one network"]
    assert paper_table.frame(found)["robust difference"].tolist() == [None] * 3


def test_other_budgets_and_fewer_images_are_told():
    other = run()
    other["config"]["attack"] = {"attack": {"iterations": 20, "eot": 20}}
    other["robust"]["single"]["n"] = 128
    other["per_seed"] = {"5": {}}
    (first, *_), _ = lines(other)
    assert "128 images and 1 seed for 512 and 3 (deviation 54: number of runs)" in first.differences
    assert "20 iterations for 200 (deviation 35: iterations of each attack)" in first.differences


def test_what_is_missing_is_named_with_its_command_and_a_part_is_shown():
    (line,), (missing,) = lines(None, "not run")
    assert line.summary is None
    assert (missing.what, paper_table.command(missing.cell)) == ("not run", "dp run +experiment=table1/hetero")
    table, notes = paper_table.shown([line])
    assert table["measured on"].tolist() == [""]
    assert notes == []
    found, missing = lines(run(), "only 2 of 3 seeds")
    assert len(found) == 3
    assert len(missing) == 1
    assert paper_table.command(CELL | {"command": ""}) == "none"


def test_strict_is_shown_by_its_own_rules_and_a_row_without_a_figure_has_no_difference():
    strict = run()
    strict["config"]["choices"]["protocol"] = "strict"
    strict["config"]["protocol"]["report"] = ["vote"]
    found, _ = lines(strict, row=ROW | {"robust": "", "robust_std": ""})
    table, _ = paper_table.shown(found)
    assert table["rule"].tolist() == ["vote of 20"]
    assert table["robust, published"].tolist() == ["-"]
    assert table["difference"].tolist() == [""]


def test_latex_has_booktabs_rules_as_many_cells_in_each_row_and_nothing_unescaped():
    frame = pd.DataFrame([["a_b", "1 ± 2 †"], ["50 %", "c & d"]], columns=["x_y", "z"])
    text = latex(frame, "a caption with 95 %", "tab:a", ["note_1", "100 %"])
    body = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0].strip().splitlines()
    assert body == ["a\\_b & 1 $\\pm$ 2 $\\dagger$ \\\\", "50 \\% & c \\& d \\\\"]
    assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")
    assert "2. 100 \\%\\\\" in text
    for name in ("table*", "tabular"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") == 1
    assert escaped("a_b{~\\") == r"a\_b\{\textasciitilde{}\textbackslash{}"
    assert io.StringIO(markdown(frame)).readline() == "| x_y | z |\n"
