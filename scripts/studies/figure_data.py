"""Measure or gather what figures show: the npz files of results/measured/figures/, from which `dp figures` draws.

Without names, all figures whose npz is missing. fig1, 3, 4, 6 and 9 attack and purify a few images of the embedded
benchmarks: three minutes of one core. fig8 takes the full-size network: six minutes of one core and 6 GB. eps needs
runs over several budgets, and says with which command they come. The others gather archived runs in seconds.
"""

import functools
import sys
from collections.abc import Callable

import figure_cost
import figure_images
import figure_runs
import numpy as np
import outputs
from rich.console import Console

from dp.figures import drawn, stored
from dp.output.record import ROOT, write_atomic
from dp.runs.errors import command

console = Console(width=150, highlight=False)
MEASURES: dict[str, Callable[[], dict[str, np.ndarray]]] = {
    "fig1_pictures": figure_images.fig1_pictures,
    "fig3_resampling": figure_images.fig3_resampling,
    "fig4_paths": figure_images.fig4_paths,
    "fig6_joint": figure_images.fig6_joint,
    "fig7_sweeps": figure_runs.fig7_sweeps,
    "fig8_cost": functools.partial(figure_cost.measured, figure_cost.CELLS),
    "fig9_distances": figure_images.fig9_distances,
    "convergence": figure_runs.convergence,
    "eps": figure_runs.eps,
    "samples": figure_runs.samples,
    "standard_robust": figure_runs.standard_robust,
}


def main() -> int:
    """The command. Returns 0 when the files of the figures are written."""
    parser = outputs.parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(drawn.FIGURES))
    args = parser.parse_args()
    there = {name for name in drawn.FIGURES if (ROOT / stored.FOLDER / f"{name}.npz").exists()}
    for name in args.names or [name for name in drawn.FIGURES if name not in there]:
        if name not in MEASURES:
            raise ValueError(f"need a figure among {', '.join(MEASURES)}, got {name}")
        path = outputs.target(ROOT / stored.FOLDER / f"{name}.npz", args.write)
        write_atomic(path, stored.packed(MEASURES[name]()))
        console.print(f"{path}: {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
