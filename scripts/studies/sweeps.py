"""How do hetero's settings trade standard for robust accuracy? Sweeps on digits with PGD's full budget.

t_l x t_s, tau, and uniform purification over its time: 128 images, 3 seeds, exact gradient; and hetero and uniform
purification at their defaults on 512 images. Every cell is a run that is archived in results/measured/ when it ends, so
that the same command goes on where it stopped. `--only` limits the cells of this start, and `--list` shows which are
missing. `--write` writes results/tables/sweeps.md and results/figures/sweeps.png from the cells that are there.
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import outputs
import worklist
from cells import RESULTS, finished, markdown
from rich.console import Console
from worklist import RULE, Run, archived

from dp.output import record
from dp.runs.errors import command

TEXT, PICTURE = RESULTS / "tables" / "sweeps.md", RESULTS / "figures" / "sweeps.png"
FULL, SOME = "+experiment=digits/full", ("+experiment=digits/full", "protocol.images=128")
STRONG, WEAK = (0.15, 0.2, 0.3, 0.4), (0.05, 0.1, 0.15)
TAUS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
TIMES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
Cells = dict[tuple[Any, ...], tuple[str, ...]]  # by the values that are swept, the overrides of a run
console = Console(width=150, highlight=False)


def cells() -> dict[str, Cells]:
    """All runs, by sweep."""
    pairs = [(t_l, t_s) for t_l in STRONG for t_s in WEAK if t_s <= t_l]
    return {
        "full": {(name,): (FULL, f"purifier={name}", "audit=false") for name in ("hetero", "diffpure")},
        "tau": {(tau,): (*SOME, "purifier=hetero", f"purifier.tau={tau}", "audit=false") for tau in TAUS},
        "t_l, t_s": {
            (t_l, t_s): (*SOME, "purifier=hetero", f"purifier.t_l={t_l}", f"purifier.t_s={t_s}", "audit=false")
            for t_l, t_s in pairs
        },
        "t": {(t,): (*SOME, "purifier=diffpure", f"purifier.t={t}", "audit=false") for t in TIMES},
    }


def figures(overrides: tuple[str, ...]) -> dict[str, tuple[float, float, float]]:
    """Standard and robust accuracy of an archived run, each with its 95 % interval, in percent."""
    summary, _ = finished(overrides)
    return {side: (summary[side][RULE]["value"], *summary[side][RULE]["wilson95"]) for side in ("standard", "robust")}


def text(found: dict[str, dict[tuple[Any, ...], dict]]) -> str:
    """The sweeps as tables for people."""
    head = "# Sweeps on digits\n\n`python scripts/studies/sweeps.py`: PGD 20 iterations x 4 samples, exact gradient, "
    head += "linf 32/255, 3 seeds; average of 20 fresh samples, percent, 95 % over images.\n\n"
    tables = []
    for name, runs in found.items():
        lines = []
        for values, sides in runs.items():
            shown = [cell for v, low, high in sides.values() for cell in (f"{v:.1f}", f"{low:.1f} - {high:.1f}")]
            lines.append([", ".join(map(str, values)), *shown, f"`{' '.join(cells()[name][values])}`"])
        tables.append(markdown(name, ["value", "standard", "95 %", "robust", "95 %", "overrides"], lines))
    return head + "\n".join(tables)


def draw(path: Path, found: dict[str, dict[tuple[Any, ...], dict]]) -> None:
    """Left: the tau sweep. Middle: robust accuracy over t_l and t_s. Right: standard against robust accuracy."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    for side, color in (("standard", "C7"), ("robust", "C3")):
        runs = found.get("tau", {})
        values = [tau for (tau,) in runs]
        points = np.array([one[side] for one in runs.values()]).reshape(-1, 3)
        errors = np.abs(points[:, 1:] - points[:, :1]).T
        left.errorbar(values, points[:, 0], yerr=errors, marker="o", color=color, capsize=3, label=side)
    left.set(xlabel="tau, the threshold of the mask", ylabel="accuracy, average of 20 (%)", title="hetero over tau")
    left.legend()
    grid = np.full((len(WEAK), len(STRONG)), np.nan)
    for (t_l, t_s), sides in found.get("t_l, t_s", {}).items():
        grid[WEAK.index(t_s), STRONG.index(t_l)] = sides["robust"][0]
    shown = middle.imshow(grid, origin="lower", cmap="cividis", aspect="auto")
    figure.colorbar(shown, ax=middle, label="robust accuracy (%)")
    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            color = "black" if shown.norm(value) > 0.5 else "white"
            middle.text(column, row, f"{value:.1f}", ha="center", va="center", color=color, fontweight="bold")
    middle.set(xticks=range(len(STRONG)), xticklabels=STRONG, yticks=range(len(WEAK)), yticklabels=WEAK)
    middle.set(xlabel="t_l, strong noise", ylabel="t_s, weak noise", title="hetero over its noise times")
    for name, marker, words in (("t", "s", "uniform, over t"), ("t_l, t_s", "o", "hetero, over t_l and t_s")):
        places = [(one["standard"][0], one["robust"][0], values) for values, one in found.get(name, {}).items()]
        right.plot([p[0] for p in places], [p[1] for p in places], marker, label=words, alpha=0.8)
        for x, y, values in places if name == "t" else ():
            right.annotate(f"{values[0]:g}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    right.set(xlabel="standard accuracy (%)", ylabel="robust accuracy (%)", title="the trade-off")
    right.legend()
    for ax in (left, right):
        ax.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> int:
    """The command. Returns 0 when the table and the figure are written."""
    args = worklist.parser(__doc__).parse_args()
    todo = [overrides for runs in cells().values() for overrides in runs.values() if not archived(overrides)]
    runs = [Run(" ".join(given), given, 1.0 if SOME[1] in given else 4.0) for given in todo]
    if args.list:
        worklist.show(runs, console)
        return 0
    worklist.make(runs, args.only, console)
    found = {name: {v: figures(o) for v, o in runs.items() if archived(o)} for name, runs in cells().items()}
    if not any(found.values()):
        raise ValueError("need at least one archived cell, got none: start the study without --only 0")
    words, picture = (outputs.target(path, args.write) for path in (TEXT, PICTURE))
    record.write_atomic(words, text(found).encode())
    draw(picture, found)
    console.print(f"{words}, {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
