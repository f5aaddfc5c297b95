"""What a person sees of a run: texts, tables and the published rows beside them."""

import io
import math

import pytest
from rich.console import Console

from dp.output.beside import beside_published
from dp.output.published import published_lines, published_rows
from dp.output.report import (
    caveat_lines,
    clock,
    fact_lines,
    gradient_words,
    padding_lines,
    quick_budget_line,
    show,
    warnings,
    work_line,
)
from dp.output.row_table import cells, row_table, row_tables
from dp.output.sweep_table import sweep_frame, sweep_table
from tests.helpers.compose import composed, setup


def figure(value, n=512, draws=1, std=1.25):
    return {"value": value, "seed_std": std, "wilson95": [value - 4.2, value + 4.1], "n": n, "draws": draws}


def figures(value, **kwargs):
    return {"single": figure(value, **kwargs), "vote": figure(value + 0.5, draws=20, **kwargs)}


def config(dataset="cifar10", classifier="wrn_28_10", attack="pgd_eot", norm="linf", eps="8/255", purifier="hetero"):
    return {
        "choices": {
            "dataset": dataset,
            "classifier": classifier,
            "purifier": purifier,
            "attack": attack,
            "protocol": "official",
        },
        "dtype": "float32",
        "scored_dtype": "float32",
        "dataset": {"name": dataset},
        "classifier": {},
        "attack": {},
        "purifier": {"published": purifier, "gradients": {"surrogate": {"steps": 10}}},
        "threat_model": {"norm": norm, "eps": eps, "grad": "full"},
        "protocol": {"ties": "softmax", "report": ["single", "vote"], "judge": None},
    }


def caveats(**changes):
    none = {
        "gradients": [[]],
        "straight_through": False,
        "differences": [],
        "departures": [],
        "scaled": [],
        "short_steps": [],
        "no_surrogate": False,
        "masks_spared": [],
        "criterion": "the mean over",
        "attack_samples": 20,
        "batch_bound": False,
        "nfe": 195,
        "attack_nfe": 195,
        "facts": [],
    }
    return none | changes


def summary(robust=59.38, null=90.0, caveat=None, **kwargs):
    return {
        "config": config(**kwargs),
        "caveats": caveats(**(caveat or {})),
        "standard": figures(93.16),
        "robust": figures(robust),
        "null": figures(null),
        "per_seed": {"5": {}, "6": {}, "7": {}},
        "ties": 3,
        "audited": None,
    }


def text(table):
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        ({"value": 59.375, "wilson95": [55.07, 63.55], "seed_std": 1.254}, ("59.4", "55.1 - 63.5", "1.25")),
        ({"value": 100, "wilson95": [99.26, 100], "seed_std": None}, ("100.0", "99.3 - 100.0", "")),
        ({"value": 0.0, "wilson95": [0, 0.74], "seed_std": 0.0}, ("0.0", "0.0 - 0.7", "0.00")),
        (None, ("-", "", "")),
    ],
)
def test_cells(figure, expected):
    assert cells(figure) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (7.4, "7 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_clock(seconds, expected):
    assert clock(seconds) == expected


@pytest.mark.parametrize("eps", ["8/255", 8 / 255, 0.03137254901960784])
def test_published_row_of_the_main_result(eps):
    """Table 1 of arXiv 2503.01407, without Table 7's ablation of the same settings."""
    found = published_rows(config(eps=eps))
    assert {row["table"] for row in found} == {"1"}
    (row,) = [row for row in found if row["table"] == "1"]
    assert (row["attack"], row["standard"], row["standard_std"]) == ("pgd_eot", "93.16", "0.21")
    assert (row["robust"], row["robust_std"]) == ("59.38", "1.25")


@pytest.mark.parametrize(
    ("method", "settings", "printed"),
    [
        ("hetero", {"classifier": "wrn_70_16"}, {("2", "59.79")}),
        ("hetero", {"norm": "l2", "eps": 0.5}, {("3", "87.11")}),
        ("hetero", {"norm": "l2", "eps": "0.5", "classifier": "wrn_70_16"}, {("4", "87.7")}),
        ("hetero", {"attack": "pgd_eot_official", "dataset": "svhn"}, {("8", "62.50")}),
        ("hetero", {"attack": "bpda_eot"}, {("5", "86.72")}),
        ("hetero", {"attack": "bpda_eot_official"}, {("5", "86.72")}),
        ("hetero", {"attack": "autoattack"}, {("1", "80.45")}),
        ("hetero", {"attack": "autoattack_upstream"}, {("1", "80.45")}),
        ("gowal_11", {"attack": "autoattack_standard"}, {("1", "62.76")}),
        ("lee_kim", {}, {("1", "55.82")}),
        (
            "diffpure",
            {"dataset": "imagenet", "classifier": "resnet50"},
            {("6", "40.63"), ("6", "48.24"), ("6", "41.67")},
        ),
    ],
)
def test_published_rows_by_method_and_setting(method, settings, printed):
    assert {(row["table"], row["robust"]) for row in published_rows(config(purifier=method, **settings))} == printed


def test_a_row_with_a_noise_time_is_printed_beside_runs_with_this_time_alone():
    setting = config(purifier="diffpure", dataset="imagenet", classifier="resnet50")
    for t, printed in ((0.3, ["48.24"]), (0.15, [])):
        setting["purifier"]["t"] = t
        assert [row["robust"] for row in published_rows(setting)] == printed


def test_a_run_stands_beside_its_published_row_by_the_papers_rule_and_two_others():
    found = summary(robust=41.2)
    for side in ("standard", "robust"):
        found[side]["mean_logits"] = figure(found[side]["single"]["value"] + 1, draws=20)
    (table,), honest = beside_published(found)
    shown = text(table)
    assert "beside arXiv 2503.01407, Table 1, Ours" in shown
    lines = {line.strip().split("  ")[0]: line.split() for line in shown.splitlines() if "." in line}
    assert lines["published"][1:] == ["93.16±0.21", "59.38±1.25"]
    assert lines["mean logits of 20 *"][5:] == ["94.16±1.25", "+1.00", "42.20±1.25", "-17.18", "38.0", "-", "46.3"]
    assert lines["single sample"][2:6] == ["93.16±1.25", "+0.00", "41.20±1.25", "-18.18"]
    assert lines["vote of 20"][3:7] == ["93.66±1.25", "+0.50", "41.70±1.25", "-17.68"]
    assert len(honest) == 1
    assert "protocol=strict" in honest[0]


def test_a_row_without_a_robust_figure_has_no_difference_and_other_runs_stand_alone():
    (table,), _ = beside_published(summary(purifier="lorid"))
    assert "-" in text(table).split("published")[1].splitlines()[0]
    assert beside_published(summary(dataset="digits")) == ([], [])
    strict = summary()
    strict["config"]["choices"]["protocol"] = "strict"
    assert beside_published(strict)[1] == []


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("hetero", {"dataset": "digits", "classifier": "digits", "eps": "32/255"}),
        ("hetero", {"dataset": "digits"}),
        ("hetero", {"eps": "4/255"}),
        ("hetero", {"norm": "l2"}),
        ("hetero", {"classifier": "resnet50"}),
        ("hetero", {"attack": "none"}),
        ("hetero", {"attack": "bpda_eot_hill"}),
        ("hetero", {"attack": "autoattack_standard"}),
        ("hetero", {"attack": "autoattack_upstream_standard"}),
        ("hetero", {"attack": "pgd_eot_mine"}),
        (None, {}),
        ("none", {}),
    ],
)
def test_most_settings_have_no_published_row(method, settings):
    assert published_rows(config(purifier=method, **settings)) == []


@pytest.mark.parametrize(
    ("words", "tables"),
    [
        (["purifier=hetero"], {"1"}),
        (["purifier=hetero", "purifier.tau=0.3"], set()),
        (["purifier=hetero", "purifier.taps=[2,3,4]"], set()),
        (["purifier=hetero", "purifier.t_l=0.5", "purifier.t_s=0.4"], set()),
        (["purifier=diffpure"], {"1"}),
        (["purifier=diffpure", "purifier.t=0.4"], set()),
    ],
)
def test_a_defense_with_other_values_has_no_published_row(words, tables):
    rows = published_rows(composed("dataset=cifar10", "attack=pgd_eot", "threat_model=linf", *words))
    assert {row["table"] for row in rows} == tables


@pytest.mark.parametrize(("preset", "printed"), [("rebuffi_35_extra", "95.74"), ("rebuffi_35", "92.41")])
def test_two_rows_of_one_paper_are_those_of_their_networks(preset, printed):
    assert {row["standard"] for row in published_rows(composed(f"+experiment=table4/{preset}"))} == {printed}


def test_a_classifiers_own_name_comes_before_the_name_of_its_yaml():
    named = config(classifier="wrn_28_10_robustbench")
    assert published_rows(named) == []
    named["classifier"]["published"] = "wrn_28_10"
    assert published_rows(named) == published_rows(config())


def test_published_lines_print_what_the_paper_prints():
    rows = published_rows(config())
    assert "arXiv 2503.01407, Table 1" in published_lines(rows)[0]
    assert "standard 93.16±0.21, robust 59.38±1.25" in published_lines(rows)[0]
    (dash,) = published_lines(published_rows(config(purifier="lorid")))
    assert dash.endswith("standard 84.20, robust -")
    (doubtful,) = published_lines(published_rows(config(purifier="diffpure")))
    assert "56.84±0.59" in doubtful
    assert "doubtful: robust 56.84 +- 0.59 is probably a misprint" in doubtful


def test_row_table_names_the_setting_and_every_figure():
    shown = text(row_table(summary()))
    for part in ("cifar10 / hetero / pgd_eot", "linf 8/255", "512 images", "3 seeds", "vote of 20", "single sample"):
        assert part in shown
    (line,) = [line for line in shown.splitlines() if "robust accuracy" in line]
    assert " ".join(line.split()) == "robust accuracy 59.4 55.2 - 63.5 1.25 59.9 55.7 - 64.0 1.25"
    assert "null control" in shown
    assert "undefended" not in shown


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"caveat": {"differences": [{"key": "n", "attacked": 10, "scored": 500}]}},
            "attacked differs from scored: n=10 instead of 500",
        ),
        (
            {"caveat": {"differences": [{"key": "mask_grad", "attacked": "soft", "scored": None}]}},
            "attacked differs from scored: mask_grad=soft",
        ),
        (
            {"caveat": {"gradients": [["surrogate", "bpda"]]}},
            "the gradient is not the scored defense's: surrogate+bpda",
        ),
        (
            {"caveat": {"gradients": [[], ["mask_soft"]]}},
            "some attacks' gradients are not the scored defense's: mask_soft",
        ),
        ({"caveat": {"straight_through": True}}, "the gradient ignores the last clamp"),
        ({"caveat": {"no_surrogate": True}}, "has no surrogate: the attack takes its exact gradient"),
        (
            {"caveat": {"departures": [{"key": "attack", "value": "square", "reference": "strict"}]}},
            "departs from protocol official: attack square instead of strict",
        ),
        (
            {"caveat": {"short_steps": [{"attack": "PGD", "reach": 0.02, "needed": 0.25}]}},
            "the steps of PGD cover 0.02 together and may need 0.25",
        ),
        ({"caveat": {"masks_spared": ["strict_mask"]}}, "the purifier's mask is not attacked: add attack=strict_mask"),
        ({"caveat": {"batch_bound": True}}, "rows depend on the other images in a batch"),
        ({"robust": 90.0, "null": 90.0}, "does not beat random noise"),
        ({"robust": 91.0, "null": 90.0}, "does not beat random noise"),
    ],
)
def test_warnings(settings, words):
    assert any(words in line for line in warnings(summary(**settings)))
    assert not any(words in line for line in warnings(summary()))


def test_what_is_scaled_names_the_dataset_that_it_stands_in_for():
    scaled = summary(caveat={"scaled": [{"key": "protocol.votes", "value": 10, "reference": 20}]})
    scaled["config"]["dataset"]["scaled_from"] = {"dataset": "cifar10"}
    assert any("from the values for cifar10: protocol.votes 10 for 20" in line for line in warnings(scaled))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "exact"),
        ({"straight_through": True}, "approximate (straight-through clamp)"),
        ({"gradients": [["values"]]}, "none"),
        ({"gradients": [[], ["surrogate", "bpda"]]}, "exact, surrogate+bpda"),
    ],
)
def test_the_gradient_in_words(changes, words):
    assert gradient_words(caveats(**changes)) == words


def test_a_narrow_gradient_is_exact_up_to_its_rounding():
    assert gradient_words(caveats(), "bfloat16") == "exact up to the rounding of bfloat16"
    assert gradient_words(caveats(gradients=[["surrogate"]]), "bfloat16") == "surrogate"


def test_a_sound_run_has_no_caveat_to_tell():
    assert caveat_lines(config(), caveats()) == []


def test_a_version_above_one_is_printed():
    moved = summary()
    moved["config"]["purifier"]["version"] = 2
    assert "hetero (version 2)" in text(row_table(moved))
    assert "version" not in text(row_table(summary()))


def test_no_attack_need_not_beat_random_noise():
    said = warnings(summary(robust=91.0, null=90.0, attack="none"))
    assert not any("random noise" in line for line in said)


def test_ties_are_always_told():
    assert any("vote ties: 3, broken by softmax" in line for line in warnings(summary()))


RUNS = [
    {"overrides": ["purifier.t_l=0.2"], "folder": "runs/a", "summary": summary(), "error": None},
    {"overrides": ["purifier.t_l=3"], "folder": "runs/b", "summary": None, "error": "need 0 < t <= 1, got t=3"},
]


def test_sweep_frame_with_a_failed_cell():
    frame = sweep_frame(RUNS)
    assert frame["overrides"].tolist() == ["purifier.t_l=0.2", "purifier.t_l=3"]
    assert frame["folder"].tolist() == ["runs/a", "runs/b"]
    good, failed = (frame.iloc[i] for i in range(2))
    assert failed["error"] == "need 0 < t <= 1, got t=3"
    assert not isinstance(good["error"], str)
    expected = {
        "standard_single": 93.16, "standard_vote": 93.66, "robust_single": 59.38, "robust_vote": 59.88,
        "robust_single_lo": 55.18, "robust_single_hi": 63.48, "standard_vote_lo": 89.46, "nfe": 195,
    }  # fmt: skip
    assert {name: good[name] for name in expected} == pytest.approx(expected)
    assert all(math.isnan(failed[name]) for name in expected)


def test_sweep_frame_of_failures_alone():
    frame = sweep_frame(RUNS[1:])
    assert frame["error"].tolist() == ["need 0 < t <= 1, got t=3"]


def test_sweep_table_with_a_failed_cell():
    shown = text(sweep_table(RUNS, "t_l"))
    (line,) = [line for line in shown.splitlines() if "t_l=0.2" in line]
    assert " ".join(line.split()) == "purifier.t_l=0.2 93.2 89.0 - 97.3 59.4 55.2 - 63.5 93.7 59.9 195"
    assert "failed: need 0 < t <= 1, got t=3" in shown


def test_an_override_with_spaces_stays_whole():
    """Two runs share the word `ce]` and one override; only the override is left out."""
    given = ("attack.losses=[cw, ce]", "attack.losses=[dlr, ce]")
    runs = [{**RUNS[1], "overrides": ["protocol.votes=3", losses]} for losses in given]
    shown = text(sweep_table(runs, ""))
    assert all(losses in shown for losses in given)
    assert "protocol.votes=3" not in shown
    assert sweep_frame(runs)["overrides"].tolist() == [f"protocol.votes=3 {losses}" for losses in given]


def test_brackets_in_overrides_and_errors_are_shown_as_they_are():
    run = {"overrides": ["classifier.taps=[relu]"], "summary": None, "error": "missing [/a/b]", "folder": ""}
    shown = text(sweep_table([run], ""))
    assert "classifier.taps=[relu]" in shown
    assert "missing [/a/b]" in shown


def of_three_rules(**judge):
    """A summary with three decision rules, and with an in-loop evaluation if `judge` has values."""
    wide = summary()
    wide["config"]["protocol"] |= {"report": ["average", "vote", "worst"], "judge": judge or None}
    rules = {rule: figure(100.0, draws=20) for rule in ("single", "average", "vote", "worst")}
    wide |= {name: rules for name in ("standard", "robust", "null", "undefended_standard", "undefended")}
    return wide | ({"seen": rules, "null_seen": rules} if judge else {})


@pytest.mark.parametrize("judge", [{}, {"in_loop": False, "screen": 20, "draws": 60}])
@pytest.mark.parametrize(("width", "parts"), [(80, 3), (120, 2), (200, 1)])
def test_three_rules_keep_their_labels_and_all_figures(width, parts, judge):
    wide, console = of_three_rules(**judge), Console(file=io.StringIO(), width=width)
    tables = row_tables(wide, console)
    if not judge:
        assert len(tables) == parts
    for table in tables:
        console.print(table)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    for rule in ("average of 20", "vote of 20", "worst of 20"):
        assert shown.count(rule) == 1
    assert shown.count("percent of 512 images") == 1
    assert shown.count("cifar10 / hetero / pgd_eot") == 1
    for label in ("standard accuracy", "robust accuracy", "undefended, clean", "undefended, attacked"):
        assert shown.count(label) == len(tables)
    assert shown.count("100.0   95.8 - 104.1") == 3 * (7 if judge else 5)
    if judge:
        joined = " ".join(shown.split())
        assert "robust, by" in joined
        assert "60 samples)" in joined


def test_a_narrow_table_wraps_its_labels():
    console = Console(file=io.StringIO(), width=60)
    for table in row_tables(of_three_rules(in_loop=False, draws=60), console):
        console.print(table)
    assert "null control" in console.file.getvalue()
    assert console.file.getvalue().count("100.0") == 3 * 7


def test_a_share_is_read_as_a_share():
    """The fact as summaries of any age have it."""
    facts = [{"name": "strong noise on % of the pixels", "value": 98.371}, {"name": "t_l", "value": 0.2}]
    lines = fact_lines(config(), caveats(facts=facts))
    assert lines == ["hetero: strong noise on 98.37 % of the pixels, t_l 0.2"]


@pytest.mark.parametrize(
    ("images", "lanes", "said"), [(9, 8, "the last of 2 batches has 1 image in 8"), (1, 4, "padded: 1 image in 4")]
)
def test_one_image_is_singular(images, lanes, said):
    (line,) = padding_lines(images, lanes)
    assert said in line


@pytest.mark.parametrize(
    ("evaluations", "said"),
    [(7.0, "7 network"), (840.4, "840 network"), (163_123, "160 thousand"), (2.5e6, "2.5 million"), (3e9, "3 billion")],
)
def test_the_work_in_words(evaluations, said):
    assert work_line(evaluations).startswith(f"work: about {said}")


def test_a_row_ends_with_the_way_to_the_glossary():
    console = Console(file=io.StringIO(), width=120)
    show({**summary(), "seconds": 3.0, "device": "cpu"}, console)
    assert console.file.getvalue().splitlines()[-1] == "every term: docs/concepts.md#glossary"
    assert "nan" not in console.file.getvalue()
    assert clock(float("nan")) == "an unknown time"


def test_the_quick_budget_is_named_with_the_command_of_the_full_one():
    """A preset has a budget of its own: also the full one on fewer images is not the quick one."""
    words = ("purifier=diffpure", "threat_model.eps=8/255", "attack.iterations=10")
    (line,) = quick_budget_line(setup(*words), 64)
    assert line.endswith(": dp run +experiment=digits/full purifier=diffpure threat_model.eps=8/255")
    assert quick_budget_line(setup(*words, "+experiment=digits/full", "protocol.images=128"), 128) == []
    assert quick_budget_line(setup("dataset=cifar10"), 64) == []
