"""Robust accuracy over the network evaluations that attacks spent: runs with a `budget`, one curve for each attack."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dp.figures import style
from dp.output import record
from dp.output.row_table import threat_words

RULE = "average"  # the single-sample accuracy, with less noise

Panel = tuple[str, ...]  # what the runs of a panel share, in words


def budget_runs(measured: Path) -> dict[Panel, dict[str, list[dict]]]:
    """The archived runs with a budget, by what they share and then by attack, the smallest budget first."""
    found: dict[Panel, dict[str, list[dict]]] = {}
    for path in sorted(measured.glob(f"*/{record.SUMMARY}")):
        summary = record.read_summary(path.parent)
        if summary is not None and summary["caveats"].get("budget"):
            panel = found.setdefault(_panel(summary), {})
            panel.setdefault(str(summary["config"]["choices"]["attack"]), []).append(summary)
    for attacks in found.values():
        for runs in attacks.values():
            runs.sort(key=_spent)
    return found


def draw(panels: Mapping[Panel, Mapping[str, Sequence[dict]]], stem: Path) -> list[Path]:
    """One panel for each comparison, as `stem`.svg and .png. Raises ValueError if there is none."""
    if not panels:
        raise ValueError("need archived runs with a budget, got none: dp run budget=N attack=NAME, then dp archive")
    figure, axes = style.sheet(max(6.0, 4.2 * len(panels)), 3.9, 1, len(panels), sharey=True)
    for axis, (panel, attacks) in zip(axes[0], panels.items(), strict=True):
        _curves(axis, attacks)
        axis.set_title("\n".join((" / ".join(panel[:4]), ", ".join(panel[4:]))), fontsize=9)
    axes[0, 0].set_ylabel("robust accuracy, average of samples, %")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return style.save(figure, stem)


def _curves(axis: Any, attacks: Mapping[str, Sequence[dict]]) -> None:
    for k, (attack, runs) in enumerate(attacks.items()):
        spent, figures = [_spent(run) for run in runs], [run["robust"][RULE] for run in runs]
        points = np.array([(figure["value"], *figure["wilson95"]) for figure in figures])
        style.errorbars(axis, spent, points, k, label=attack)
    axis.set(xscale="log", xlabel="network evaluations of an image that the attack spent", ylim=(-2, 102))


def _panel(summary: dict) -> Panel:
    config, choices = summary["config"], summary["config"]["choices"]
    n = summary["robust"]["single"]["n"]
    seeds = len(summary["per_seed"])
    return (
        str(choices["dataset"]),
        str(choices["purifier"]),
        threat_words(config),
        f"protocol {choices['protocol']}",
        f"{n} images",
        f"{seeds} seed" + ("" if seeds == 1 else "s"),
    )


def _spent(summary: dict) -> float:
    return summary["caveats"]["budget"][0]["spent"]
