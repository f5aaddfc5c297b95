"""Accuracies, votes and intervals against scipy, the statistics module and hand-made rows."""

import statistics

import numpy as np
import pytest
from scipy import stats

from dp.statistics.intervals import interval
from dp.statistics.metrics import accuracy, summarize, vote


def votes_for(*classes, margin=1.0, size=4):
    """Logits whose samples choose these classes, by this margin."""
    logits = np.zeros((len(classes), size), dtype=np.float32)
    logits[np.arange(len(classes)), classes] = margin
    return logits


@pytest.mark.parametrize("ties", ["softmax", "lowest"])
@pytest.mark.parametrize(
    ("classes", "winner"), [([2], 2), ([1, 3, 3], 3), ([0, 0, 0], 0), ([3, 1, 2, 3, 0], 3), ([0, 1, 1, 2, 2, 2], 2)]
)
def test_vote_by_plurality(classes, winner, ties):
    assert vote(votes_for(*classes), ties) == (winner, False)


def test_vote_counts_samples_and_not_confidence():
    logits = votes_for(1, 1, 2)
    logits[2] *= 1000
    assert vote(logits) == (1, False)


@pytest.mark.parametrize(
    ("classes", "margins", "softmax", "lowest"),
    [
        ([1, 3], [1, 2], 3, 1),
        ([1, 3], [2, 1], 1, 1),
        ([3, 3, 2, 2, 0], [1, 1, 1.5, 1, 50], 2, 2),  # class 0 is sure of itself, but not tied
        ([3, 3, 2, 2, 0], [1.5, 1, 1, 1, 50], 3, 2),
        ([0, 1, 2, 3], [1, 1, 1, 1.1], 3, 0),
        ([2, 3], [1e4, 1.0], 2, 2),  # logits beyond the range of exp
        ([2, 3], [1.0, 1e4], 3, 2),
    ],
)
def test_vote_with_a_tie(classes, margins, softmax, lowest):
    logits = votes_for(*classes) * np.array(margins, dtype=np.float32)[:, None]
    assert vote(logits, "softmax") == (softmax, True)
    assert vote(logits, "lowest") == (lowest, True)
    assert vote(logits) == (softmax, True)


def test_vote_sums_softmax_and_not_logits():
    """Classes 0 and 1 tie: one huge logit wins the sum of logits, two fairly sure samples the sum of softmax."""
    logits = np.array([[9.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 3.0, 0.0], [2.0, 1.9, 0.0]])
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert logits.sum(0).argmax() == 0
    assert probabilities.sum(0).argmax() == 1
    assert vote(logits) == (1, True)


def test_vote_sums_probabilities_and_not_shares_of_the_maximum():
    """Class 0 wins .64 to .42, but loses 1.13 to 1.20 when each sample is scaled to peak at 1."""
    probabilities = np.array([[0.60, 0.12, 0.28, 0.00001], [0.04, 0.30, 0.28, 0.28]])
    assert probabilities.sum(0)[:2] == pytest.approx([0.64, 0.42])
    assert vote(np.log(probabilities)) == (0, True)


def test_vote_ignores_a_shift_of_all_logits():
    logits = votes_for(1, 3) * np.array([[1.0], [1.2]])
    assert vote(logits + np.array([[500.0], [-900.0]])) == (3, True)


def test_vote_with_an_unknown_rule():
    with pytest.raises(AssertionError, match="ties is one of"):
        vote(votes_for(0), "first")


def test_accuracy_of_one_seed():
    found = accuracy({7: [True, False, True, True]}, draws=1)
    interval = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert found.pop("wilson95") == pytest.approx([100 * interval.low, 100 * interval.high])
    assert found == {"value": 75.0, "seed_std": None, "n": 4, "draws": 1}


def test_accuracy_counts_images_and_not_images_times_seeds():
    decisions = {1: [True] * 3 + [False], 2: [True] * 2 + [False] * 2, 3: [True] * 4}
    found = accuracy(decisions, draws=10)
    assert found["value"] == pytest.approx(75)
    assert (found["n"], found["draws"]) == (4, 10)
    assert found["seed_std"] == pytest.approx(statistics.stdev([75, 50, 100]))
    assert found["wilson95"] == [100 * end for end in interval(np.array([1, 1, 2 / 3, 1 / 3]))]


def test_accuracy_of_seeds_that_agree_is_that_of_one():
    one = accuracy({1: [1, 1, 0, 1, 0]}, draws=1)
    assert accuracy({seed: [1, 1, 0, 1, 0] for seed in (1, 2, 3)}, draws=1) == {**one, "seed_std": 0.0}


def row(arm, seed, label, adv, adv_vote, clean=None, clean_vote=None, ties=0):
    clean = [] if clean is None else clean
    means = {f"{side}_{rule}": None for side in ("clean", "adv") for rule in ("mean_logits", "mean_softmax")}
    return {"arm": arm, "seed": seed, "id": label, "label": label, "ties": ties, "seen": [], **means} | {
        "clean": clean, "clean_vote": clean_vote, "adv": adv, "adv_vote": adv_vote
    }  # fmt: skip


ROWS = [
    row("defended", 5, 1, adv=[0, 1, 1], adv_vote=1, clean=[1, 1, 1], clean_vote=1),
    row("defended", 5, 2, adv=[2, 0, 0], adv_vote=0, clean=[0, 2, 2], clean_vote=2, ties=1),
    row("defended", 6, 1, adv=[0, 0, 0], adv_vote=0, clean=[1, 1, 1], clean_vote=1),
    row("defended", 6, 2, adv=[0, 2, 0], adv_vote=0, clean=[2, 2, 2], clean_vote=2, ties=2),
    row("undefended", 5, 1, adv=[3], adv_vote=3, clean=[1], clean_vote=1),
    row("undefended", 5, 2, adv=[2], adv_vote=2, clean=[3], clean_vote=3),
    row("null", 5, 1, adv=[1, 0, 0], adv_vote=0),
    row("null", 5, 2, adv=[2, 2, 2], adv_vote=2),
    row("null", 6, 1, adv=[1, 1, 1], adv_vote=1),
    row("null", 6, 2, adv=[2, 0, 2], adv_vote=2),
]


def test_summarize():
    summary = summarize(ROWS, votes=3)
    values = {
        name: (summary[name]["single"]["value"], summary[name]["vote"]["value"])
        for name in ("standard", "robust", "undefended_standard", "undefended", "null")
    }
    assert values == {
        "standard": (75.0, 100.0),
        "robust": (25.0, 25.0),
        "undefended_standard": (50.0, 50.0),
        "undefended": (50.0, 50.0),
        "null": (100.0, 75.0),
    }
    for name in values:
        assert summary[name]["single"]["draws"] == 1
        assert summary[name]["vote"]["draws"] == 3
        assert {figure["n"] for figure in summary[name].values()} == {2}
    assert summary["standard"]["single"]["seed_std"] == pytest.approx(statistics.stdev([50, 100]))
    assert summary["robust"]["vote"]["seed_std"] == pytest.approx(statistics.stdev([50, 0]))
    assert summary["null"]["vote"]["seed_std"] == pytest.approx(statistics.stdev([50, 100]))
    assert summary["undefended"]["single"]["seed_std"] is None
    assert summary["ties"] == 3
    cells = {
        seed: {name: {rule: by_rule[rule] for rule in ("single", "vote")} for name, by_rule in figures.items()}
        for seed, figures in summary["per_seed"].items()
    }
    assert cells == {
        "5": {
            "standard": {"single": 50.0, "vote": 100.0},
            "robust": {"single": 50.0, "vote": 50.0},
            "undefended_standard": {"single": 50.0, "vote": 50.0},
            "undefended": {"single": 50.0, "vote": 50.0},
            "null": {"single": 100.0, "vote": 50.0},
        },
        "6": {
            "standard": {"single": 100.0, "vote": 100.0},
            "robust": {"single": 0.0, "vote": 0.0},
            "null": {"single": 100.0, "vote": 100.0},
        },
    }


def test_average_and_worst_by_hand():
    """Right samples of the attacked: 2/3 and 1/3 under seed 5, 0 and 1/3 under seed 6; none is right on all three."""
    summary = summarize(ROWS, votes=3)
    assert summary["robust"]["average"]["value"] == pytest.approx(100 * (2 + 1 + 0 + 1) / 12)
    assert summary["robust"]["worst"]["value"] == 0
    assert summary["standard"]["worst"]["value"] == pytest.approx(75)
    low, high = summary["robust"]["average"]["wilson95"]
    assert low < summary["robust"]["average"]["value"] < high


def test_curves_by_hand():
    """Right samples of the attacked, of three: 2 and 1 under seed 5, 0 and 1 under seed 6. Votes of two are right for
    the share of pairs that are, plus half of those that tie; the first image's ties are all with class 0.
    """
    curves = summarize(ROWS, votes=3)["curves"]
    assert set(curves) == {"standard", "robust", "null"}
    worst, vote, success = (curves["robust"][name] for name in ("worst", "vote", "success"))
    assert worst["value"] == [33.33, round(100 * (1 / 3 + 0 + 0 + 0) / 4, 2), 0.0]
    assert vote["value"] == [33.33, round(100 * (2 / 3 + 1 / 3 + 0 + 1 / 3) / 4, 2), 25.0]
    assert success == {"counts": [0, 1, 2, 1], "between": 0.75}
    ends = interval(np.array([1 / 6, 0]))
    assert (worst["wilson95_low"][1], worst["wilson95_high"][1]) == tuple(round(100 * end, 2) for end in ends)
    assert curves["null"]["success"]["counts"] == [2, 1, 1, 0]


def test_curves_settle_ties_as_the_protocol_does():
    """A pair with one sample of class 0 and one of the label is class 0's."""
    vote = summarize(ROWS, votes=3, ties="lowest")["curves"]["robust"]["vote"]
    assert vote["value"][1] == round(100 * (1 / 3 + 0 + 0 + 0) / 4, 2)


@pytest.mark.parametrize("samples", [4, 7])
def test_curves_end_at_the_figures_of_all_samples(samples):
    """Worst of R is `worst`, worst of 1 `average`; vote of R is `vote` where no count ties, vote of 1 `average`."""
    rng, rows = np.random.default_rng(samples), []
    for seed in (1, 2):
        for i in range(40):
            classes = rng.choice(4, size=samples, p=[0.5, 0.3, 0.1, 0.1])
            winner, tied = vote(votes_for(*classes))
            rows.append({**row("null", seed, 0, classes.tolist(), winner), "id": i, "tied": tied})
    tied = {r["id"] for r in rows if r["tied"]}
    summary = summarize([r for r in rows if r["id"] not in tied], votes=samples)
    curves, figures = summary["curves"]["null"], summary["null"]
    for name, first, last in (("worst", "average", "worst"), ("vote", "average", "vote")):
        assert curves[name]["value"][0] == pytest.approx(figures[first]["value"], abs=0.006)
        assert curves[name]["value"][-1] == pytest.approx(figures[last]["value"], abs=0.006)
        assert curves[name]["wilson95_low"][-1] == pytest.approx(figures[last]["wilson95"][0], abs=0.006)


def test_figures_of_a_judge():
    """Two images, one broken by its vote at iteration 3; average and worst of the samples at each one's worst point."""
    rows = [
        {**row("defended", 5, 1, [1], 1, [1], 1), "seen": [1, 1, 1, 0], "lost_at": None},
        {**row("defended", 5, 2, [2], 2, [2], 2), "seen": [0, 0, 2, 0], "lost_at": 3},
    ]
    seen = summarize(rows, votes=1, judged="vote", judge_draws=4)["seen"]
    assert {rule: figure["value"] for rule, figure in seen.items()} == {"average": 50, "worst": 0, "vote": 50}
    assert {figure["draws"] for figure in seen.values()} == {4}
    assert "seen" not in summarize(rows, votes=1)


def test_summarize_does_not_depend_on_the_order_of_rows():
    assert summarize(ROWS[::-1], votes=3) == summarize(ROWS, votes=3)


def test_summarize_leaves_out_conditions_without_rows():
    summary = summarize(ROWS[:4], votes=3)
    assert set(summary) == {"standard", "robust", "curves", "per_seed", "ties"}
    assert set(summarize(ROWS[6:], votes=3)) == {"null", "curves", "per_seed", "ties"}
