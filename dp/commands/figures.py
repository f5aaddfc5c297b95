"""dp figures: draw results/figures/ from results/measured/, each figure as SVG and PNG. Nothing is computed again.

From archived runs come tradeoff_<dataset>, the standard and robust accuracy over the noise time, adjoint_error, the
error of the adjoint gradient, and, of runs with a budget, budget, the robust accuracy over what each attack spent.
The others are drawn from results/measured/figures/<name>.npz, which scripts/studies/figure_data.py measures.
"""

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from dp.figures import drawn, stored, style
from dp.output import budget_figure, record
from dp.output.console import console
from dp.output.shapes import contents, misfit
from dp.runs.errors import DONE, command
from dp.runs.keys import run_key
from dp.spelling import near_matches

MEASURED, FIGURES = Path("results/measured"), Path("results/figures")
STANDARD, ROBUST, GRAY = "#0b6e99", "#c1440e", "#777777"
DIFFPURE_DT, DIFFPURE_END = 1e-3, 1e-5  # the solver's step and the end time in DiffPure's code
STEP_COLORS = ("#9ecae1", "#4292c6", ROBUST, "#08306b")  # from the longest step to the shortest; red: DIFFPURE_DT

COLUMNS = {"method", "dtype", "t", "end", "dt", "images", "relative_error_median", "equal_signs"}


class Uniform(TypedDict):
    """What the figure needs of the purifier's node."""

    t: float


def uniform_runs(dataset: str, images: int) -> list[dict]:
    """The summaries of uniform purification on so many images, sorted by noise time. They differ in nothing else: of
    several such series, the longest one.
    """
    plain = {"purifier": "diffpure", "attack": "pgd_eot", "threat_model": "linf", "protocol": "default"}
    summaries = [_read(path.parent) for path in sorted(MEASURED.glob(f"*/{record.SUMMARY}"))]
    series: dict[str, list[dict]] = {}
    for s in summaries:
        if (
            s is not None
            and plain.items() <= s["config"]["choices"].items()
            and s["config"]["dataset"]["name"] == dataset
            and s["robust"]["single"]["n"] == images
        ):
            rest = s["config"] | {"purifier": s["config"]["purifier"] | {"t": 0.0}}
            series.setdefault(run_key(rest), []).append(s)
    return sorted(max(series.values(), key=len, default=[]), key=lambda s: s["config"]["purifier"]["t"])


def _read(folder: Path) -> dict | None:
    """The summary of an archived run. Raises ValueError if a run of diffpure lacks what the figure shows."""
    summary = record.read_summary(folder)
    if summary is not None and summary["config"]["choices"].get("purifier") == "diffpure":
        problem = misfit(summary["config"]["purifier"], Uniform, "config.purifier")
        if problem:
            raise ValueError(f"need {folder / record.SUMMARY} as a run writes it, got {problem}: archive the run again")
    return summary


def tradeoff(dataset: str, images: int) -> list[Path]:
    """Draw standard and robust accuracy over the noise time, with Wilson intervals, for a single sample and the vote.

    Raises ValueError if there are fewer than two runs.
    """
    runs = uniform_runs(dataset, images)
    if len(runs) < 2:
        choices = f"dataset={dataset} purifier=diffpure attack=pgd_eot protocol.images={images}"
        raise ValueError(
            f"need two or more runs of {choices} with different purifier.t in {MEASURED}, got {len(runs)}: "
            f"use dp run and dp archive, or work in a checkout, which has such runs of digits"
        )
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    votes = runs[0]["robust"]["vote"]["draws"]
    for axis, rule, title in zip(axes, ("single", "vote"), ("single sample", f"vote of {votes}"), strict=True):
        _accuracies(axis, runs, rule)
        axis.set_title(title)
    attack, threat = runs[0]["config"]["attack"], runs[0]["config"]["threat_model"]
    axes[0].set_ylabel("accuracy, %")
    budget = f"PGD {attack['iterations']} x EOT {attack['eot']}, {threat['norm']} {threat['eps']}, exact gradients"
    seeds = len(runs[0]["per_seed"])
    figure.suptitle(
        f"Uniform purification on {dataset}: {budget}\n{images} images, {seeds} seeds, bands: Wilson 95 %", fontsize=10
    )
    paths = style.save(figure, FIGURES / f"tradeoff_{dataset}")
    plt.close(figure)
    return paths


def _accuracies(axis: Axes, runs: list[dict], rule: str) -> None:
    """Draw the curves of one decision rule over the noise time."""
    t = [s["config"]["purifier"]["t"] for s in runs]
    gray: dict[str, Any] = {"textcoords": "offset points", "color": GRAY}
    for name, color in (("standard", STANDARD), ("robust", ROBUST)):
        value = [s[name][rule]["value"] for s in runs]
        low, high = zip(*(s[name][rule]["wilson95"] for s in runs), strict=True)
        axis.fill_between(t, low, high, color=color, alpha=0.15, linewidth=0)
        axis.plot(t, value, "o-", color=color, markersize=4, label=name)
        axis.annotate(name, (t[-1], value[-1]), (6, 0), textcoords="offset points", color=color, va="center")
    null = [s["null"][rule]["value"] for s in runs]
    axis.plot(t, null, ":", color=GRAY, linewidth=1.2)
    axis.annotate("random noise", (t[-1], null[-1]), (6, -9), va="center", **gray)
    undefended = [s["undefended"][rule]["value"] for s in runs]
    axis.plot(t, undefended, "--", color=GRAY, linewidth=1)
    axis.annotate(f"undefended {undefended[0]:.1f} %", (t[0], undefended[0]), (0, 6), **gray)
    axis.set(xlabel="noise time t", xlim=(0, 0.52), ylim=(-2, 102), xticks=t)
    axis.tick_params(axis="x", labelsize=8, rotation=45)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)


def adjoint_error() -> list[Path]:
    """Draw the relative error and the wrong signs of the adjoint gradient over the end time of the reversal.

    There is one line for each step of the solver. The data come from scripts/studies/adjoint.py. Raises ValueError
    if they are missing.
    """
    rows = _adjoint_rows(MEASURED / "adjoint.csv")
    for row in rows:
        row["wrong_signs"] = 100 * (1 - row["equal_signs"])
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), sharex=True, sharey="row", layout="constrained")
    for column, (method, title) in enumerate((("sde", "reverse SDE"), ("ode", "probability-flow ODE"))):
        axes[0, column].set(title=title, xscale="log", yscale="log", ylim=(2e-3, 8))
        axes[0, column].axhline(1, color=GRAY, linewidth=1, linestyle="--")
        axes[1, column].set(xlabel="end time of the reversal", ylim=(0, 50))
        for axis, name in zip(axes[:, column], ("relative_error_median", "wrong_signs"), strict=True):
            _lines_per_step(axis, [r for r in rows if r["method"] == method], name)
    axes[0, 0].set_ylabel("relative error |adjoint - exact| / |exact|")
    axes[1, 0].set_ylabel("pixels with the wrong sign, %")
    axes[0, 1].annotate("as large as the gradient", (3e-2, 1), xytext=(0, 4), textcoords="offset points", ha="right", fontsize=8, color=GRAY)  # fmt: skip  # noqa: E501
    axes[1, 1].legend(frameon=False, fontsize=9, loc="upper right", title="step of the solver")
    figure.suptitle(
        "The adjoint's gradient breaks as the reversal ends closer to time 0\n"
        f"DiffPure on digits, noise time t = {rows[0]['t']:g}; {rows[0]['images']:.0f} images, one sample each "
        "(errors: medians); lines: float64, circles: float32",
        fontsize=10,
    )
    paths = style.save(figure, FIGURES / "adjoint_error")
    plt.close(figure)
    return paths


def _adjoint_rows(path: Path) -> list[dict]:
    """The table of scripts/studies/adjoint.py. Raises ValueError if it is not whole."""
    todo = "in a checkout, python scripts/studies/adjoint.py --write writes it again"
    if not path.exists():
        raise ValueError(f"need {path}, got no such file: {todo}")
    lines = contents(path, todo).decode(errors="replace").splitlines()
    try:
        rows: list[dict] = [
            {k: v if k in ("method", "dtype") else float(v) for k, v in row.items()} for row in csv.DictReader(lines)
        ]
        grid = [{row[key] for row in rows} for key in ("method", "dtype", "dt", "end")]
        whole = len(rows) == math.prod(map(len, grid)) and len(grid[2]) == len(STEP_COLORS)
        whole = whole and all(row.keys() >= COLUMNS for row in rows)
    except (ValueError, TypeError, KeyError, csv.Error):
        rows, whole = [], False
    if not whole:
        raise ValueError(f"need {path} as the study writes it, got another or a torn table: {todo}")
    return rows


def _lines_per_step(axis, rows: list[dict], name: str) -> None:
    """Draw the column `name` over the end time: float64 as lines, float32 as circles.

    The step of DiffPure has a color of its own, and its value at DiffPure's end time is written beside the point.
    """
    for dt, color in zip(sorted({row["dt"] for row in rows}, reverse=True), STEP_COLORS, strict=True):
        is_diffpure = dt == DIFFPURE_DT
        label = f"dt = {dt:g}" + (", DiffPure's" if is_diffpure else "")
        for dtype, look in (("float64", "-"), ("float32", "o")):
            points = [row for row in rows if (row["dtype"], row["dt"]) == (dtype, dt)]
            ends, values = [row["end"] for row in points], [row[name] for row in points]
            line = {"label": label, "linewidth": 2.4 if is_diffpure else 1.2} if look == "-" else {"mfc": "none"}
            axis.plot(ends, values, look, color=color, markersize=5, **line)
    diffpure = ("float64", DIFFPURE_DT, DIFFPURE_END)
    (value,) = (row[name] for row in rows if (row["dtype"], row["dt"], row["end"]) == diffpure)
    axis.plot(DIFFPURE_END, value, "o", color=ROBUST, markersize=9)
    text = f"{value:.2f}" if axis.get_yscale() == "log" else f"{value:.0f} %"
    axis.annotate(text, (DIFFPURE_END, value), xytext=(-9, 0), textcoords="offset points", ha="right", va="center", color=ROBUST, weight="bold")  # fmt: skip  # noqa: E501
    axis.set_xlim(2e-6, 4.5e-2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)


def budget() -> list[Path]:
    """Draw robust accuracy over spent network evaluations, if there are archived runs with a budget."""
    panels = budget_figure.budget_runs(MEASURED)
    return budget_figure.draw(panels, FIGURES / "budget") if panels else []


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if the figures are drawn, 2 after a user's error."""
    own = ("tradeoff", "adjoint_error", "budget")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join((*own, *drawn.FIGURES)))
    parser.add_argument("--all", action="store_true", help="all figures whose data are there, as without a name")
    parser.add_argument("--dataset", default="digits", help="of tradeoff")
    parser.add_argument("--images", type=int, default=128, help="size of the runs that tradeoff draws (default 128)")
    args = parser.parse_args(argv)

    def draw() -> int:
        known = (*own, *drawn.FIGURES)
        for name in args.names:
            if name not in known:
                raise ValueError(f"unknown figure {name}{near_matches(name, known)}: dp figures --help lists them")
        every = args.all or not args.names
        for name in known if every else args.names:
            if name in own:
                calls = {"tradeoff": lambda: tradeoff(args.dataset, args.images), "adjoint_error": adjoint_error}
                with style.looks():
                    paths = calls.get(name, budget)()
            elif every and not stored.path_of(name).exists():
                console.print(f"{name}: no data yet; {stored.todo(name)}")
                continue
            else:
                paths = drawn.draw(name)
            console.print(*paths)
        return DONE

    return command(draw)
