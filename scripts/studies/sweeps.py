"""How do hetero's settings trade standard for robust accuracy? Sweeps on digits with PGD's full budget.

t_l x t_s, tau, and uniform purification over its time: 128 images, 3 seeds, exact gradient; and hetero and uniform
purification at their defaults on 512 images. Every cell is a run that is archived in results/measured/ when it ends, so
that the same command goes on where it stopped. `--only` limits the cells of this start, and `--list` shows which are
missing. `--write` writes results/tables/sweeps.md from the cells that are there; their figure is fig7_sweeps, see
figure_data.py.
"""

import sys
from typing import Any

import outputs
import worklist
from cells import RESULTS, finished, markdown
from rich.console import Console
from worklist import RULE, Run, archived

from dp.output import record
from dp.runs.errors import command

TEXT = RESULTS / "tables" / "sweeps.md"
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


def todo() -> list[Run]:
    """The runs that are not archived."""
    missing = [overrides for runs in cells().values() for overrides in runs.values() if not archived(overrides)]
    return [Run(" ".join(given), given, 1.0 if SOME[1] in given else 4.0) for given in missing]


def main() -> int:
    """The command. Returns 0 when the table is written."""
    args = worklist.started(__doc__, todo, console)
    if args is None:
        return 0
    found = {name: {v: figures(o) for v, o in runs.items() if archived(o)} for name, runs in cells().items()}
    if not any(found.values()):
        raise ValueError("need at least one archived cell, got none: start the study without --only 0")
    words = outputs.target(TEXT, args.write)
    record.write_atomic(words, text(found).encode())
    console.print(words)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
