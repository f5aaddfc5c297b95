"""The figures and the words of a report, from labels that are made by hand."""

import pytest
import torch

from dp.sanitizing.report import markdown, notes, of_labels, of_model, share, transitions
from dp.statistics.intervals import wilson


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def test_a_share_has_its_interval():
    got = share(torch.tensor([True, True, False, True]))
    assert got is not None
    assert (got["value"], got["n"]) == (75.0, 4)
    assert (got["low"] / 100, got["high"] / 100) == pytest.approx(wilson(0.75, 4))
    assert share(torch.zeros(0, dtype=torch.bool)) is None


def test_figures_of_a_model_by_hand():
    figures = of_model(labels(0, 1, 2, 2), labels(0, 1, 2, 3), labels(0, 0, 2, 1), labels(1, 2, 2, 3), target=0)
    assert {name: figure["value"] for name, figure in figures.items()} == {"accuracy": 75, "success": 50, "right": 25}


def test_figures_of_labels_by_hand():
    given, new, true = labels(0, 0, 0, 0, 4, 5), labels(3, 1, 0, 0, 4, 6), labels(3, 2, 1, 0, 4, 5)
    poisoned = torch.tensor([True, True, True, False, False, False])
    figures = of_labels(given, new, true, poisoned, known=True)
    assert figures["changed"] == 3
    assert figures["true_positive"]["value"] == pytest.approx(200 / 3)
    assert figures["false_positive"]["value"] == pytest.approx(100 / 3)
    assert figures["restored"]["value"] == 50
    unknown = of_labels(given, new, true, poisoned, known=False)
    assert (unknown["changed"], unknown["true_positive"], unknown["restored"]) == (3, None, None)


def test_transitions_of_both_kinds():
    both = transitions(torch.tensor([True, True, False, True]), torch.tensor([True, False, True, True]))
    assert both == {"poisoned": 2, "others": 1}


def summary(success: float, flagged: list[int], known: bool = True) -> dict:
    one = {"value": success, "low": 1.0, "high": 99.0, "n": 9}
    figure = one if known else None
    model = {"accuracy": one, "success": figure, "right": figure}
    found = {"changed": 3, "true_positive": figure, "false_positive": figure, "restored": figure}
    counts = {"sure": 2, "suspicious": 1, "agreed": 0, "images": 60, "poisoned": 9 if known else None}
    by_class = {"classes": [0, 4], "divergence": [2.5, 0.5], "score": [8.0, 0.25], "flagged": flagged}
    models = dict.fromkeys(("poisoned", "benign", "sanitized"), model)
    words = {"key": "k", "target": 0, "denoiser_trained_on": "poisoned", "models": models, "labels": found}
    return {**words, **counts, **by_class, "transitions": {"poisoned": 9, "others": 4}}


def test_the_report_says_that_the_target_was_not_found():
    said = "\n".join(notes(summary(99.0, [4])))
    assert "the target class 0 was not found: the poison is still in the set" in said
    assert "little success" not in said
    assert "was not found" not in "\n".join(notes(summary(99.0, [0])))


def test_the_report_says_that_the_attack_was_weak():
    assert "the attack itself had little success" in "\n".join(notes(summary(12.0, [0])))


def test_a_report_without_an_attack_success():
    found = summary(99.0, [0])
    found["models"]["poisoned"] = {**found["models"]["poisoned"], "success": None}
    assert "little success" not in "\n".join(notes(found))


def test_a_set_as_it_is_has_no_rates():
    page = markdown(summary(99.0, [0], known=False))
    assert "true positive" not in page
    assert "label transitions: 4 of 60 other images" in page
    assert "| 0 | 2.500 | 8.0 | yes |" in page
    assert "| 4 | 0.500 | 0.2 |  |" in page
