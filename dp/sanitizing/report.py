"""The figures of a sanitizing, with intervals over images, and its report in Markdown."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dp.statistics.intervals import wilson

MODELS = {
    "poisoned": "trained on the set as it was given",
    "benign": "benign model of the method",
    "sanitized": "trained on the sanitized set",
}
WEAK = 50.0  # percent of attack success before sanitizing
COLUMNS = {"accuracy": "accuracy", "success": "attack success", "right": "right in spite of the trigger"}


def share(hits: Tensor) -> dict | None:
    """The share of (n,) bool in percent, with the ends of its 95 % Wilson interval; None without an image."""
    if not len(hits):
        return None
    value = hits.double().mean().item()
    low, high = wilson(value, len(hits))
    return {"value": 100 * value, "low": 100 * low, "high": 100 * high, "n": len(hits)}


def of_model(clean: Tensor, y: Tensor, triggered: Tensor, y_triggered: Tensor, target: int) -> dict:
    """The figures of a classifier from its labels of the test images (T,) and of those with the trigger (A,).

    `y`, `y_triggered`: their own labels. `accuracy`: without the trigger; `success` of the attack: images with the
    trigger that get the target label; `right`: those that get their own. Without a trigger the last two are None.
    """
    return {
        "accuracy": share(clean == y),
        "success": share(triggered == target),
        "right": share(triggered == y_triggered),
    }


def of_labels(given: Tensor, new: Tensor, true: Tensor, poisoned: Tensor, known: bool) -> dict:
    """The figures of the changed labels: `changed`, and if it is known what is poisoned, the true and false positive
    rates and `restored`, the share of poisoned images with a changed label that have their true one again.

    All are (N,): the labels as given, after sanitizing, before the poison; and which images are poisoned, bool.
    """
    changed = given != new
    figures: dict[str, Any] = {"changed": int(changed.sum())}
    figures["true_positive"] = share(changed[poisoned]) if known else None
    figures["false_positive"] = share(changed[~poisoned]) if known else None
    figures["restored"] = share((new == true)[changed & poisoned]) if known else None
    return figures


def percent(figure: Mapping[str, float] | None) -> str:
    """A figure with its interval, for people."""
    return "-" if figure is None else f"{figure['value']:.1f} ({figure['low']:.1f} to {figure['high']:.1f})"


def table(summary: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table of models: a line of names, and a line for each model."""
    lines = [["classifier", *(f"{words}, %" for words in COLUMNS.values())]]
    for name, words in MODELS.items():
        lines.append([words, *(percent(summary["models"][name][key]) for key in COLUMNS)])
    return lines


def notes(summary: Mapping[str, Any]) -> list[str]:
    """The lines below the table."""
    classes = ", ".join(map(str, summary["flagged"])) or "none"
    found, moved = summary["labels"], summary["transitions"]
    of = f"{moved['poisoned']} of {summary['poisoned']} poisoned and " if summary["poisoned"] is not None else ""
    lines = [
        f"denoiser trained on: {summary['denoiser_trained_on']}",
        f"label transitions: {of}{moved['others']} of {summary['images'] - (summary['poisoned'] or 0)} other images",
        f"flagged classes: {classes}; {summary['sure']} images relabeled at once, {summary['suspicious']} suspicious, "
        f"{summary['agreed']} of them used for fine-tuning; {found['changed']} labels changed",
    ]
    if summary["poisoned"] is not None:
        lines += [
            f"true positive rate {percent(found['true_positive'])} %, "
            f"false positive rate {percent(found['false_positive'])} %; "
            f"true label restored in {percent(found['restored'])} % of the poisoned images with a changed label",
        ]
        success = summary["models"]["poisoned"]["success"]
        if success is not None and success["value"] < WEAK:
            lines.append("the attack itself had little success, so this run says little about the method")
        if summary["target"] not in summary["flagged"]:
            lines.append(f"the target class {summary['target']} was not found: the poison is still in the set")
    return lines


def markdown(summary: Mapping[str, Any]) -> str:
    """The report of a finished sanitizing."""
    rows = table(summary)
    rows.insert(1, ["---"] * len(rows[0]))
    lines = [f"# {summary['key']}", "", *("| " + " | ".join(cells) + " |" for cells in rows), ""]
    lines += [*(f"- {line}" for line in notes(summary)), ""]
    lines += ["In parentheses: 95 % Wilson intervals over images. A label that is changed counts as a positive.", ""]
    lines += ["| class | divergence | score | flagged |", "| --- | --- | --- | --- |"]
    for k, value, score in zip(*(summary[key] for key in ("classes", "divergence", "score")), strict=True):
        lines.append(f"| {k} | {value:.3f} | {score:.1f} | {'yes' if k in summary['flagged'] else ''} |")
    return "\n".join([*lines, ""])


def transitions(transition: Tensor, poisoned: Tensor) -> dict:
    """How many images (N,) have a label transition: of the poisoned ones, and of the others."""
    both = torch.stack([transition & poisoned, transition & ~poisoned])
    return dict(zip(("poisoned", "others"), both.sum(1).tolist(), strict=True))
