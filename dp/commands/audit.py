"""dp audit: run every check of dp/audit/ on a few images of a configuration.

It prints a table, and writes results/audits/<key>.json and .png (<key>-quick with --quick). The exit code is 1 if a
check fails.
"""

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

from dp.audit import battery, gradients
from dp.audit.check import Finding, Subject
from dp.commands.options import parser, wide_console
from dp.output import record, report
from dp.runs import compose, pipeline
from dp.runs.cards import write_card
from dp.runs.early import check_early
from dp.runs.errors import DONE, command
from dp.runs.keys import run_key
from dp.runs.lanes import with_lanes
from dp.runs.sources import sources_hash

FOLDER = Path("results/audits")
FAILED = 1  # exit code
STYLES = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "INFO": "cyan"}
COLORS = ("#0b6e99", "#c1440e", "#7a5195", "#5c8a3a")
GRAY = "#777777"


def table(findings: Sequence[Finding], title: str) -> Table:
    """A table with one line for each check."""
    result = Table(box=box.SIMPLE_HEAD, title=Text(title), padding=(0, 1))
    for name in ("check", "value", "threshold", "status", "of", "time"):
        narrow = name in ("check", "status", "time")
        result.add_column(name, justify="right" if name == "time" else "left", no_wrap=narrow, overflow="fold")
    for f in findings:
        status = Text(f.verdict, style=STYLES[f.verdict])
        result.add_row(f.check, Text(f.value), Text(f.threshold), status, f.count, report.clock(f.seconds))
    return result


def derivative(axis: Axes, curve: dict, subject: Subject) -> None:
    """Plot the error of the gradient over the length of the differences."""
    for color, (name, errors) in zip(COLORS, _series(curve), strict=False):
        axis.plot(curve["x"], errors, "o-", color=color, markersize=3, label=name)
    axis.axhline(gradients.DERIVATIVE, color=GRAY, linestyle="--", linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel="length of the difference", ylabel="relative error of the slope")
    axis.legend(frameon=False, fontsize=8)


def eps_sweep(axis: Axes, curve: dict, subject: Subject) -> None:
    """Plot the accuracy over eps."""
    threat, at = subject.evaluation.threat, range(len(curve["x"]))
    unit = 255 if threat.norm == "linf" else 1
    axis.plot(at, curve["accuracy"], "o-", color=COLORS[0], markersize=3)
    axis.axvline(list(curve["x"]).index(threat.eps), color=GRAY, linestyle="--", linewidth=1)
    axis.set_xticks(at, [f"{unit * x:.3g}" for x in curve["x"]])
    xlabel = f"eps{' x 255' if unit == 255 else ''} ({threat.norm}), not to scale; dashed: the run's"
    axis.set(xlabel=xlabel, ylabel="accuracy, %", ylim=(-3, 103))


def expectation(axis: Axes, curve: dict, subject: Subject) -> None:
    """Plot the cosine of two mean gradients over their number of samples."""
    axis.plot(curve["x"], curve["cosine"], "o-", color=COLORS[0], markersize=3)
    axis.axvline(subject.arm.attack.samples, color=GRAY, linestyle="--", linewidth=1)
    axis.axhline(gradients.GOOD, color=GRAY, linestyle=":", linewidth=1)
    axis.set_xscale("log", base=2)
    axis.set_xticks(curve["x"], [str(n) for n in curve["x"]])
    axis.set(xlabel="samples of each half; dashed: the attack's", ylabel="cosine of two halves", ylim=(min(0, *curve["cosine"]), 1.03))  # fmt: skip  # noqa: E501


def trajectory(axis: Axes, curve: dict, subject: Subject) -> None:
    """Plot the loss over the iterations."""
    for color, name, label in zip(COLORS, ("loss", "best"), ("current iterate", "best so far"), strict=False):
        axis.plot(curve["x"], curve[name], "-", color=color, label=label)
    axis.axhline(0, color=GRAY, linestyle=":", linewidth=1)
    axis.set(xlabel="iteration", ylabel="mean margin (above 0: wrong)")
    axis.legend(frameon=False, fontsize=8)


PANELS: dict[str, tuple[str, Callable[[Axes, dict, Subject], None]]] = {  # by the name of the check
    "derivative": ("gradient against differences", derivative),
    "eps sweep": ("accuracy over the budget", eps_sweep),
    "EOT": ("mean gradients of disjoint samples", expectation),
    "loss": ("loss on samples that the attack has not used", trajectory),
}


def _series(curve: dict) -> list[tuple[str, Sequence[float]]]:
    return [(name, values) for name, values in curve.items() if name != "x"]


def picture(findings: Sequence[Finding], subject: Subject, title: str, path: Path) -> None:
    """Draw four panels and save them at `path`. A panel whose check has no curve gives the reason."""
    by_name = {f.check: f for f in findings}
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
    for axis, (name, (words, draw)) in zip(axes.flat, PANELS.items(), strict=True):
        finding = by_name.get(name)
        axis.set_title(words if finding is None else f"{words}: {finding.verdict}", fontsize=10)
        if finding is not None and finding.curve:
            draw(axis, dict(finding.curve), subject)
            axis.spines[["top", "right"]].set_visible(False)
        else:
            axis.axis("off")
            why = "not checked" if finding is None else finding.value
            axis.text(0.5, 0.5, textwrap.fill(why, 40), ha="center", va="center", color=GRAY, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if no check fails, 1 if one fails, 2 after a user's error, 130 if interrupted."""
    arguments = parser(__doc__, "configuration, as for dp run (default: digits, hetero, pgd_eot)")
    arguments.add_argument("--quick", action="store_true", help="the quick audit, as before a long job")
    arguments.add_argument("--images", type=int, default=None, help="number of images (16; with --quick 8)")
    args = arguments.parse_intermixed_args(argv)
    torch.set_num_threads(1)  # as in a run, because the last bits of a sum depend on it

    def audit() -> int:
        setup = compose.setup(*args.overrides, config_dirs=args.config_dirs)
        return audited(setup, args.quick, args.images, wide_console(soft_wrap=False))

    return command(audit, "interrupted; nothing is saved")


def audited(setup: compose.Setup, quick: bool, images: int | None, console: Console) -> int:
    """Audit a configuration, print the findings and write them. Returns 0, or 1 if a check fails."""
    images = (battery.QUICK_IMAGES if quick else 2 * battery.QUICK_IMAGES) if images is None else images
    if images < 1:
        raise ValueError(f"need --images >= 1, got {images}")
    setup = with_lanes(setup)
    folder = pipeline.folder_of(setup)
    check_early(setup.config)
    pipeline.fetch_missing(setup.config)
    key, code = run_key(setup.config), sources_hash(setup.config)
    name = key + ("-quick" if quick else "")
    job = pipeline.built(setup, folder, code)
    subject = pipeline.subject_of(job, images, quick)
    count, gradient = len(subject.images.ids), report.gradient_words(job.caveats.as_data(), setup.config["dtype"])
    console.print(f"{name}: {count} images on {job.evaluation.device}, gradient: {gradient}")
    findings = pipeline.audited(subject, console)
    console.print(table(findings, name))
    FOLDER.mkdir(parents=True, exist_ok=True)
    picture(findings, subject, name, FOLDER / f"{name}.png")
    battery.write(FOLDER / f"{name}.json", code, findings, quick, images=count, config=setup.config)
    entry = battery.entry(findings, quick)
    console.print(report.audit_word(entry))
    console.print(f"results: {FOLDER / name}.json, .png")
    if (record.read_summary(folder) or {}).get("code") == code:
        battery.attach(folder, entry)
        write_card(folder)
        console.print(f"and with the row: {folder / record.SUMMARY}")
    return FAILED if any(f.verdict == "FAIL" for f in findings) else DONE
