"""Certified accuracy on digits: one-shot denoising, a consistency model, DensePure and the bare classifier, by sigma
and number of samples.

Every cell is a certification that is archived in results/measured/certified/ when it ends, so that the same command
goes on where it stopped. `--only` limits the cells of this start, `--at-once` says how many run side by side, each in a
process of one thread, and `--list` shows which are missing. `--tiny` has 4 images and 50 samples in each cell, to try
the study out, and archives nothing. The study writes results/tables/certified.md, .csv and
results/figures/certified.png.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib
import outputs
import pandas as pd
from cells import RESULTS, markdown, side_by_side
from rich.console import Console

from dp.certification import rows
from dp.certification.curve import curve
from dp.certification.picture import plot
from dp.output import record, report
from dp.runs import certified
from dp.runs.errors import command

TABLE = RESULTS / "tables" / "certified.csv"
TEXT, PICTURE = TABLE.with_suffix(".md"), RESULTS / "figures" / "certified.png"
MEASURED, NEW = RESULTS / "measured" / "certified", RESULTS / "certified"
TINY = ("certificate.images=4", "certificate.n0=20", "certificate.n=50", "certificate.batch=10")
TITLES = {"one_shot": "one-shot", "densepure": "DensePure", "none": "bare classifier"}
TITLES["digits_consistency"] = "consistency model"
console = Console(width=150, highlight=False)


class Cell(NamedTuple):
    """A certification of the study."""

    certificate: str
    sigma: float
    n: int
    images: int
    denoiser: str = "digits"

    @property
    def title(self) -> str:
        """The base classifier in words."""
        return TITLES[self.certificate if self.denoiser == "digits" else self.denoiser]

    @property
    def name(self) -> str:
        """The cell in words."""
        return f"{self.title}, sigma {self.sigma:g}, N {self.n}, {self.images} images"

    def words(self, tiny: bool) -> list[str]:
        """The words of its command."""
        given = [f"dataset=digits certificate={self.certificate} certificate.sigma={self.sigma:g}"]
        given += [] if self.denoiser == "digits" else [f"denoiser={self.denoiser}"]
        given += [f"certificate.n={self.n} certificate.images={self.images} device=cpu"]
        return [*" ".join(given).split(), *(TINY if tiny else ())]


CELLS = [  # the cheapest first
    *(Cell("none", sigma, 1000, 512) for sigma in (0.25, 0.5, 0.75)),
    *(Cell("one_shot", sigma, 1000, 512) for sigma in (0.25, 0.5, 0.75)),
    *(Cell("one_shot", sigma, 1000, 512, "digits_consistency") for sigma in (0.25, 0.5, 0.75)),
    Cell("densepure", 0.5, 1000, 64),
    Cell("one_shot", 0.5, 10_000, 64),
]


def finished(cell: Cell, tiny: bool) -> tuple[dict, Path]:
    """The summary and the folder of a cell. It is read if it is archived; otherwise it runs now, or goes on."""
    job = job_of(cell, tiny)
    copy = MEASURED / job.folder.name
    summary = None if tiny else certified.read_summary(copy)
    if summary is not None:
        return summary, copy
    start = job.folder / record.START
    if start.exists() and record.read_start(job.folder)["code"] != job.code:
        job.config["overwrite"] = True
    summary = certified.judged(job)
    assert summary is not None, "one shard does it all"
    return summary, job.folder if tiny else certified.archive(job.folder, MEASURED)


def job_of(cell: Cell, tiny: bool) -> certified.Job:
    """The certification of a cell."""
    return certified.configured([*cell.words(tiny), f"results={NEW}"])


def missing(tiny: bool) -> list[Cell]:
    """The cells that are not finished."""
    where = NEW if tiny else MEASURED
    return [cell for cell in CELLS if not (where / job_of(cell, tiny).folder.name / record.SUMMARY).exists()]


def line(cell: Cell, summary: dict, tiny: bool) -> dict:
    """A cell as data, accuracies in percent."""
    found: dict = {
        "base": cell.title,
        "certificate": cell.certificate,
        **{key: summary[key] for key in ("sigma", "n", "images", "cap")},
    }
    for at in summary["certified"]:
        found |= {f"{key} at {at['radius']:g}": at[key] for key in ("accuracy", "low", "high")}
    found |= {key: summary[key] for key in ("abstained", "mean_radius", "evaluations", "seconds")}
    return found | {"run": summary["key"], "command": "python scripts/certify.py " + " ".join(cell.words(tiny))}


def text(lines: list[dict], total: int) -> str:
    """The lines as a table for people."""
    radii = [key.removeprefix("accuracy at ") for key in lines[0] if key.startswith("accuracy at ")]
    columns = ["base classifier", "sigma", "N", "images", *(f"at {radius}" for radius in radii)]
    columns += ["largest possible radius", "mean radius", "abstentions", "evaluations per image", "time"]
    table = []
    for one in lines:
        cells = [one["base"], f"{one['sigma']:g}", f"{one['n']}", f"{one['images']}"]
        for at in radii:
            values = [f"{one[f'{key} at {at}']:.1f}" for key in ("accuracy", "low", "high")]
            cells.append(f"{values[0]} ({values[1]} to {values[2]})")
        mean = one["mean_radius"]
        cells += [f"{one['cap']:.3f}", "-" if mean is None else f"{mean:.3f}", f"{one['abstained']}"]
        cells += [f"{one['evaluations'] / one['images']:,.0f}", report.clock(one["seconds"])]
        table.append(cells)
    note = (
        "Percent of the images of digits that are certified with their label at an l2 radius, images in [0, 1], with "
    )
    note += "95 % Wilson intervals over images. 100 samples select the class, N others estimate its probability; "
    note += "alpha .001. 64 images are the first of the 512. Mean radius: of images that are certified with their "
    note += "label. Times are of one thread.\n"
    left = total - len(lines)
    commands = "".join(f"    {one['command']}\n" for one in lines)
    end = f"\n{left} cells are not measured yet.\n" if left else ""
    return markdown("Certified accuracy on digits", columns, table) + f"\n{note}{end}\nCommands:\n\n{commands}"


def draw(path: Path, done: list[tuple[Cell, dict, Path]]) -> None:
    """A panel for each sigma: certified accuracy over the radius, with the largest possible radius of each curve."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    sigmas = sorted({cell.sigma for cell, _, _ in done})
    figure, axes = plt.subplots(1, len(sigmas), figsize=(4.6 * len(sigmas), 5), squeeze=False, layout="constrained")
    for axis, sigma in zip(axes[0], sigmas, strict=True):
        mine = [each for each in done if each[0].sigma == sigma]
        curves = [
            curve(f"{cell.title}, N {summary['n']}, {summary['images']} images", read, summary["cap"])
            for cell, summary, folder in mine
            for read in [rows.read(folder / rows.ALL)]
        ]
        plot(axis, curves)
        axis.set_title(f"sigma {sigma:g}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> int:
    """The command. Returns 0 when the tables and the figure are written."""
    args = outputs.cell_arguments(outputs.cell_parser(__doc__, "4 images and 50 samples in each cell"))
    todo = missing(args.tiny)
    for cell in todo if args.list else ():
        console.print(cell.name)
    if args.list:
        return 0
    calls = {cell.name: (cell, args.tiny) for cell in todo[: args.only]}
    console.print(f"{len(todo)} cells to run, {len(calls)} of them now")
    for name, (summary, _) in side_by_side(finished, calls, args.at_once) if calls else ():
        console.print(f"{name}: {report.clock(summary['seconds'])}, mean radius {summary['mean_radius']}")
    gone = {*missing(args.tiny)}
    done = [(cell, *finished(cell, args.tiny)) for cell in CELLS if cell not in gone]
    if not done:
        raise ValueError("need at least one archived cell, got none: start the study without --only 0")
    table, words, picture = (outputs.target(path, args.write) for path in (TABLE, TEXT, PICTURE))
    lines = [line(cell, summary, args.tiny) for cell, summary, _ in done]
    pd.DataFrame(lines).to_csv(table, index=False, float_format="%.4f")
    record.write_atomic(words, text(lines, len(CELLS)).encode())
    draw(picture, done)
    console.print(f"{table}, {words}, {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
