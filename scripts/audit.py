"""Audit a configuration, as run.py takes it: every check of evaluation.md section 3 on a few images. A table, and
results/audits/<key>.json and .png (<key>-quick with --quick). Exit code 1 where a check fails.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

mpl.use("Agg")
import matplotlib.pyplot as plt
from told import told

import run
from dp.audit import battery as audit
from dp.audit import gradients
from dp.audit.check import Finding, Subject
from dp.output import record, report

FOLDER = Path("results/audits")
STYLES = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "INFO": "cyan"}
COLOURS = ("#0b6e99", "#c1440e", "#7a5195", "#5c8a3a")
GREY = "#777777"


def table(findings: Sequence[Finding], title: str) -> Table:
    """A line per check."""
    shown = Table(box=box.SIMPLE_HEAD, title=Text(title), padding=(0, 1))
    for name in ("check", "value", "threshold", "verdict", "of", "time"):
        narrow = name in ("check", "verdict", "time")
        shown.add_column(name, justify="right" if name == "time" else "left", no_wrap=narrow, overflow="fold")
    for f in findings:
        verdict = Text(f.verdict, style=STYLES[f.verdict])
        shown.add_row(f.check, Text(f.value), Text(f.threshold), verdict, f.count, report.clock(f.seconds))
    return shown


def derivative(axis: Axes, curve: dict, subject: Subject) -> None:
    for colour, (name, errors) in zip(COLOURS, _series(curve), strict=False):
        axis.plot(curve["x"], errors, "o-", color=colour, markersize=3, label=name)
    axis.axhline(gradients.DERIVATIVE, color=GREY, linestyle="--", linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel="length of the difference", ylabel="relative error of the slope")
    axis.legend(frameon=False, fontsize=8)


def eps_sweep(axis: Axes, curve: dict, subject: Subject) -> None:
    threat, at = subject.evaluation.threat, range(len(curve["x"]))
    unit = 255 if threat.norm == "linf" else 1
    axis.plot(at, curve["accuracy"], "o-", color=COLOURS[0], markersize=3)
    axis.axvline(list(curve["x"]).index(threat.eps), color=GREY, linestyle="--", linewidth=1)
    axis.set_xticks(at, [f"{unit * x:.3g}" for x in curve["x"]])
    xlabel = f"eps{' x 255' if unit == 255 else ''} ({threat.norm}), not to scale; dashed: the run's"
    axis.set(xlabel=xlabel, ylabel="accuracy, %", ylim=(-3, 103))


def expectation(axis: Axes, curve: dict, subject: Subject) -> None:
    axis.plot(curve["x"], curve["cosine"], "o-", color=COLOURS[0], markersize=3)
    axis.axvline(subject.arm.attack.samples, color=GREY, linestyle="--", linewidth=1)
    axis.axhline(gradients.GOOD, color=GREY, linestyle=":", linewidth=1)
    axis.set_xscale("log", base=2)
    axis.set_xticks(curve["x"], [str(n) for n in curve["x"]])
    axis.set(xlabel="draws of each half; dashed: the attack's", ylabel="cosine of two halves", ylim=(min(0, *curve["cosine"]), 1.03))  # fmt: skip  # noqa: E501


def trajectory(axis: Axes, curve: dict, subject: Subject) -> None:
    for colour, name, label in zip(COLOURS, ("loss", "best"), ("where it stands", "best so far"), strict=False):
        axis.plot(curve["x"], curve[name], "-", color=colour, label=label)
    axis.axhline(0, color=GREY, linestyle=":", linewidth=1)
    axis.set(xlabel="iteration", ylabel="mean margin (above 0: wrong)")
    axis.legend(frameon=False, fontsize=8)


PANELS: dict[str, tuple[str, Callable[[Axes, dict, Subject], None]]] = {  # by the finding's name
    "derivative": ("gradient against differences", derivative),
    "eps sweep": ("accuracy over the budget", eps_sweep),
    "EOT": ("mean gradients of disjoint draws", expectation),
    "loss": ("loss on draws the attack has not seen", trajectory),
}


def _series(curve: dict) -> list[tuple[str, Sequence[float]]]:
    return [(name, values) for name, values in curve.items() if name != "x"]


def picture(findings: Sequence[Finding], subject: Subject, title: str, path: Path) -> None:
    """Four panels; one whose check has no curve says why."""
    by = {f.check: f for f in findings}
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
    for axis, (name, (words, draw)) in zip(axes.flat, PANELS.items(), strict=True):
        found = by.get(name)
        axis.set_title(words if found is None else f"{words}: {found.verdict}", fontsize=10)
        if found is not None and found.curve:
            draw(axis, dict(found.curve), subject)
            axis.spines[["top", "right"]].set_visible(False)
        else:
            axis.axis("off")
            why = "not asked" if found is None else found.value
            axis.text(0.5, 0.5, textwrap.fill(why, 40), ha="center", va="center", color=GREY, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="configuration, as for run.py (default: digits, hetero, pgd_eot)")
    parser.add_argument("--quick", action="store_true", help="the small audit, as before a long job")
    parser.add_argument("--images", type=int, default=None, help="how many are asked about (16; --quick: 8)")
    args = parser.parse_intermixed_args()
    console = Console(soft_wrap=False, markup=False, highlight=False, width=None if sys.stdout.isatty() else 160)
    torch.set_num_threads(1)  # as in a run: a sum's last bits depend on it
    return told(lambda: audited(args.overrides, args.quick, args.images, console), "interrupted; nothing is kept")


def audited(overrides: Sequence[str], quick: bool, images: int | None, console: Console) -> int:
    """What was found, printed and written; 1 where a check fails."""
    images = (audit.QUICK_IMAGES if quick else 2 * audit.QUICK_IMAGES) if images is None else images
    if images < 1:
        raise ValueError(f"need --images >= 1, got {images}")
    config = run.composed(*overrides)
    run.prepare(config)
    evaluation, key = run.build(config), run.run_key(config) + ("-quick" if quick else "")
    subject = run.subject_of(config, evaluation, images, quick)
    console.print(f"{key}: {len(subject.images.ids)} images on {evaluation.device}, gradient: {subject.claimed_names}")
    found = run.audited(subject, console)
    console.print(table(found, key))
    FOLDER.mkdir(parents=True, exist_ok=True)
    picture(found, subject, key, FOLDER / f"{key}.png")
    told = {"images": len(subject.images.ids), "config": config}
    audit.write(FOLDER / f"{key}.json", code := record.code_hash(), found, quick, **told)
    console.print(report.audit_word(audit.entry(found, quick)))
    console.print(f"results: {FOLDER / key}.json, .png")
    folder = Path(config["results"]) / run.run_key(config)
    if (record.read_summary(folder) or {}).get("code") == code:
        audit.attach(folder, audit.entry(found, quick))
        console.print(f"and with the row: {folder / record.SUMMARY}")
    return 1 if any(f.verdict == "FAIL" for f in found) else 0


if __name__ == "__main__":
    sys.exit(main())
