"""Robust accuracy over the network evaluations that attacks spent: runs with a `budget`, one curve for each attack."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dp.output import record
from dp.output.row_table import threat_words

COLORS = ("#c1440e", "#0b6e99", "#6a8d2f", "#7a4f9a", "#b8860b", "#333333")
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


def draw(panels: Mapping[Panel, Mapping[str, Sequence[dict]]], path: Path) -> None:
    """One panel for each comparison. Raises ValueError if there is none."""
    if not panels:
        raise ValueError("need archived runs with a budget, got none: dp run budget=N attack=NAME, then dp archive")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    size = (max(6.0, 4.2 * len(panels)), 3.9)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (panel, attacks) in zip(axes[0], panels.items(), strict=True):
        _curves(axis, attacks)
        axis.set_title("\n".join((" / ".join(panel[:4]), ", ".join(panel[4:]))), fontsize=9)
    axes[0, 0].set_ylabel("robust accuracy, average of samples, %")
    axes[0, 0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _curves(axis: Any, attacks: Mapping[str, Sequence[dict]]) -> None:
    for color, (attack, runs) in zip(COLORS * len(attacks), attacks.items(), strict=False):
        spent, figures = [_spent(run) for run in runs], [run["robust"][RULE] for run in runs]
        values = [figure["value"] for figure in figures]
        below = [max(0.0, figure["value"] - figure["wilson95"][0]) for figure in figures]
        above = [max(0.0, figure["wilson95"][1] - figure["value"]) for figure in figures]
        axis.errorbar(
            spent, values, yerr=[below, above], marker="o", markersize=4, capsize=2, color=color, label=attack
        )
    axis.set(xscale="log", xlabel="network evaluations of an image that the attack spent", ylim=(-2, 102))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)


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
