"""Draw results/figures/ from results/measured/: the trade-off over noise time, and the adjoint gradient's error."""

import argparse
import csv
import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
MEASURED, FIGURES = ROOT / "results" / "measured", ROOT / "results" / "figures"
STANDARD, ROBUST, GREY = "#0b6e99", "#c1440e", "#777777"
THEIR_DT, THEIR_END = 1e-3, 1e-5  # DiffPure's own
STEP_COLOURS = ("#9ecae1", "#4292c6", ROBUST, "#08306b")  # from the longest step to the shortest; red: THEIR_DT


def uniform_runs(dataset: str, images: int) -> list[dict]:
    """Summaries of uniform purification on this many images, by noise time."""
    found = [json.loads(path.read_text()) for path in MEASURED.glob("*/summary.json")]
    plain = {"purifier": "diffpure", "attack": "pgd_eot", "threat_model": "linf"}
    found = [s for s in found if plain.items() <= s["config"]["choices"].items()]
    found = [s for s in found if s["config"]["choices"].get("protocol", "default") == "default"]
    found = [s for s in found if s["config"]["dataset"]["name"] == dataset and s["robust"]["single"]["n"] == images]
    return sorted(found, key=lambda s: s["config"]["purifier"]["t"])


def tradeoff(dataset: str, images: int) -> Path:
    """Standard and robust accuracy over t with Wilson intervals, single draw and vote."""
    runs = uniform_runs(dataset, images)
    if len(runs) < 2:
        raise ValueError(f"need runs of diffpure on {images} images of {dataset} in results/measured, got {len(runs)}")
    t = [s["config"]["purifier"]["t"] for s in runs]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    votes = runs[0]["robust"]["vote"]["draws"]
    for axis, rule, title in zip(axes, ("single", "vote"), ("single draw", f"vote of {votes}"), strict=True):
        for name, colour, label in (("standard", STANDARD, "standard"), ("robust", ROBUST, "robust")):
            value = [s[name][rule]["value"] for s in runs]
            low, high = zip(*(s[name][rule]["wilson95"] for s in runs), strict=True)
            axis.fill_between(t, low, high, color=colour, alpha=0.15, linewidth=0)
            axis.plot(t, value, "o-", color=colour, markersize=4, label=label)
            axis.annotate(
                label, (t[-1], value[-1]), xytext=(6, 0), textcoords="offset points", color=colour, va="center"
            )
        null = [s["null"][rule]["value"] for s in runs]
        axis.plot(t, null, ":", color=GREY, linewidth=1.2)
        axis.annotate(
            "random noise", (t[-1], null[-1]), xytext=(6, -9), textcoords="offset points", color=GREY, va="center"
        )
        undefended = runs[0]["undefended"][rule]["value"]
        axis.plot(t, [s["undefended"][rule]["value"] for s in runs], "--", color=GREY, linewidth=1)
        axis.annotate(
            f"undefended {undefended:.1f} %", (t[0], undefended), xytext=(0, 6), textcoords="offset points", color=GREY
        )
        axis.set(title=title, xlabel="noise time t", xlim=(0, 0.52), ylim=(-2, 102), xticks=t)
        axis.tick_params(axis="x", labelsize=8, rotation=45)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    attack, threat = runs[0]["config"]["attack"], runs[0]["config"]["threat_model"]
    axes[0].set_ylabel("accuracy, %")
    budget = f"PGD {attack['iterations']} x EOT {attack['eot']}, {threat['norm']} {threat['eps']}, exact gradients"
    figure.suptitle(f"Uniform purification on {dataset}: {budget}\n{images} images, {len(runs[0]['per_seed'])} seeds, bands: Wilson 95 %", fontsize=10)  # fmt: skip  # noqa: E501
    path = FIGURES / f"tradeoff_{dataset}.png"
    figure.savefig(path, dpi=160)
    plt.close(figure)
    return path


def adjoint_error() -> Path:
    """The adjoint's relative error and wrong signs over the last time, a line per step (scripts/studies/adjoint.py)."""
    with (MEASURED / "adjoint.csv").open() as file:
        rows: list[dict] = [
            {k: v if k in ("method", "dtype") else float(v) for k, v in row.items()} for row in csv.DictReader(file)
        ]
    for row in rows:
        row["wrong_signs"] = 100 * (1 - row["equal_signs"])
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), sharex=True, sharey="row", layout="constrained")
    for column, (method, title) in enumerate((("sde", "reverse SDE"), ("ode", "probability-flow ODE"))):
        axes[0, column].set(title=title, xscale="log", yscale="log", ylim=(2e-3, 8))
        axes[0, column].axhline(1, color=GREY, linewidth=1, linestyle="--")
        axes[1, column].set(xlabel="end time of the reversal", ylim=(0, 50))
        for axis, name in zip(axes[:, column], ("relative_error_median", "wrong_signs"), strict=True):
            _lines_per_step(axis, [r for r in rows if r["method"] == method], name)
    axes[0, 0].set_ylabel("relative error |adjoint - exact| / |exact|")
    axes[1, 0].set_ylabel("pixels with the wrong sign, %")
    axes[0, 1].annotate("as large as the gradient", (3e-2, 1), xytext=(0, 4), textcoords="offset points", ha="right", fontsize=8, color=GREY)  # fmt: skip  # noqa: E501
    axes[1, 1].legend(frameon=False, fontsize=9, loc="upper right", title="step of the solver")
    figure.suptitle(
        "The adjoint's gradient breaks as the reversal ends closer to time 0\n"
        f"DiffPure on digits, noise time t = {rows[0]['t']:g}; {rows[0]['images']:.0f} images, one draw each "
        "(errors: medians); lines: float64, circles: float32",
        fontsize=10,
    )
    path = FIGURES / "adjoint_error.png"
    figure.savefig(path, dpi=160)
    plt.close(figure)
    return path


def _lines_per_step(axis, rows: list[dict], name: str) -> None:
    """`name` over the last time: float64 as lines, float32 as circles; DiffPure's own step in its own colour, its value
    at its own end time written beside it.
    """
    for dt, colour in zip(sorted({row["dt"] for row in rows}, reverse=True), STEP_COLOURS, strict=True):
        theirs = dt == THEIR_DT
        label = f"dt = {dt:g}" + (", DiffPure's" if theirs else "")
        for dtype, style in (("float64", "-"), ("float32", "o")):
            here = [row for row in rows if (row["dtype"], row["dt"]) == (dtype, dt)]
            ends, values = [row["end"] for row in here], [row[name] for row in here]
            line = {"label": label, "linewidth": 2.4 if theirs else 1.2} if style == "-" else {"mfc": "none"}
            axis.plot(ends, values, style, color=colour, markersize=5, **line)
    (value,) = (row[name] for row in rows if (row["dtype"], row["dt"], row["end"]) == ("float64", THEIR_DT, THEIR_END))
    axis.plot(THEIR_END, value, "o", color=ROBUST, markersize=9)
    said = f"{value:.2f}" if axis.get_yscale() == "log" else f"{value:.0f} %"
    axis.annotate(said, (THEIR_END, value), xytext=(-9, 0), textcoords="offset points", ha="right", va="center", color=ROBUST, weight="bold")  # fmt: skip  # noqa: E501
    axis.set_xlim(2e-6, 4.5e-2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--images", type=int, default=128, help="size of the runs to draw (default 128)")
    args = parser.parse_args()
    FIGURES.mkdir(parents=True, exist_ok=True)
    try:
        print(tradeoff(args.dataset, args.images).relative_to(ROOT))
        print(adjoint_error().relative_to(ROOT))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
