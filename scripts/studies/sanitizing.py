"""Sanitizing of poisoned digits: three triggers, three rates, three seeds, and denoisers of clean and of poisoned data.

Every cell is a sanitizing that is archived in results/measured/sanitized/ when it ends, so that the same command goes
on where it stopped: a minute or two of one thread each. `--only` limits the cells of this start, `--at-once` says how
many run side by side, each in a process of one thread, and `--list` shows which are missing. `--tiny` has 64 images
and short trainings in each cell, to try the study out, and archives nothing. The study writes
results/tables/sanitizing.md, .csv, results/figures/sanitizing.png, and the rounds of one image in
results/figures/sanitizing_clean.png and sanitizing_poisoned.png.
"""

import functools
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import outputs
import pandas as pd
from cells import RESULTS, markdown, side_by_side
from matplotlib.figure import Figure
from rich.console import Console

from dp.output import record, report
from dp.runs import sanitize, sanitized
from dp.runs.errors import command
from dp.statistics.intervals import wilson

TABLE = RESULTS / "tables" / "sanitizing.csv"
TEXT, PICTURE = TABLE.with_suffix(".md"), RESULTS / "figures" / "sanitizing.png"
MEASURED, NEW = RESULTS / "measured" / "sanitized", RESULTS / "sanitized"
TINY = [
    "images=200",
    "rounds.count=2",
    "rounds.coarse=3",
    "classifier.steps=5",
    "finetuning.steps=5",
    "denoiser.steps=5",
]
TRIGGERS, RATES, SEEDS, SOURCES = (
    ("patch", "blended", "sinusoidal"),
    (0.1, 0.05, 0.02),
    (0, 1, 2),
    ("clean", "poisoned"),
)
NAMES = {
    "accuracy before": "accuracy, poisoned set",
    "accuracy after": "accuracy, sanitized set",
    "success before": "attack success, poisoned set",
    "success after": "attack success, sanitized set",
    "true positive": "true positive rate",
    "false positive": "false positive rate",
}
COLORS = {"clean": "#0b6e99", "poisoned": "#c1440e"}
console = Console(width=150, highlight=False)


class Cell(NamedTuple):
    """A sanitizing of the study."""

    seed: int
    rate: float
    trigger: str
    trained_on: str

    @property
    def name(self) -> str:
        """The cell in words."""
        return f"{self.trigger}, rate {self.rate:g}, seed {self.seed}, denoiser trained on {self.trained_on}"

    @property
    def is_shown(self) -> bool:
        """True for the two cells of which the study keeps the picture of the rounds."""
        return (self.trigger, self.rate, self.seed) == ("patch", 0.1, 0)

    def words(self, tiny: bool) -> list[str]:
        """The words of its command."""
        given = [f"dataset=digits poison={self.trigger} poison.rate={self.rate:g} sanitizer.seed={self.seed}"]
        given += [f"sanitizer.denoiser_trained_on={self.trained_on} device=cpu"]
        return [*" ".join(given).split(), *(f"sanitizer.{word}" for word in TINY if tiny)]


CELLS = [Cell(*values) for values in product(SEEDS, RATES, TRIGGERS, SOURCES)]


def finished(cell: Cell, tiny: bool) -> dict:
    """The summary of a cell. It is read if it is archived; otherwise the cell runs now, or goes on."""
    summary = None if tiny else sanitized.read_summary(MEASURED / key_of(cell, tiny))
    if summary is not None:
        return summary
    job = job_of(cell, tiny)
    start = job.folder / record.START
    if start.exists() and record.read_start(job.folder)["code"] != job.code:
        job.config["overwrite"] = True
    summary = sanitize.judged(job)
    if not tiny:
        if cell.is_shown:
            copy = MEASURED / job.folder.name
            copy.mkdir(parents=True, exist_ok=True)
            record.write_atomic(copy / sanitized.PICTURE, (job.folder / sanitized.PICTURE).read_bytes())
        sanitized.archive(job.folder, MEASURED)
    return summary


def job_of(cell: Cell, tiny: bool) -> sanitized.Job:
    """The sanitizing of a cell."""
    return sanitized.configured([*cell.words(tiny), f"results={NEW}"])


@functools.cache
def key_of(cell: Cell, tiny: bool) -> str:
    """The key of a cell. Composing it takes a second."""
    return job_of(cell, tiny).folder.name


def missing(tiny: bool) -> list[Cell]:
    """The cells that are not finished. Only those with a summary of the same settings are composed."""
    where, names = NEW if tiny else MEASURED, {}
    for path in sorted(where.glob(f"*/{record.SUMMARY}")):
        summary = sanitized.read_summary(path.parent)
        assert summary is not None, "its file is there"
        cell = Cell(*(summary[key] for key in ("seed", "rate", "poison", "denoiser_trained_on")))
        names.setdefault(cell, set()).add(path.parent.name)
    return [cell for cell in CELLS if cell not in names or key_of(cell, tiny) not in names[cell]]


def line(cell: Cell, summary: dict, tiny: bool) -> dict[str, Any]:
    """A cell as data: figures in percent, each with the ends of its 95 % interval and its number of images."""
    before, after, labels = summary["models"]["poisoned"], summary["models"]["sanitized"], summary["labels"]
    figures = {"accuracy before": before["accuracy"], "accuracy after": after["accuracy"]}
    figures |= {"success before": before["success"], "success after": after["success"]}
    figures |= {"true positive": labels["true_positive"], "false positive": labels["false_positive"]}
    found: dict[str, Any] = cell._asdict()
    for name, figure in figures.items():
        found |= {name: figure["value"], **{f"{name} {key}": figure[key] for key in ("low", "high", "n")}}
    found |= {"flagged": " ".join(map(str, summary["flagged"])), "found": summary["target"] in summary["flagged"]}
    found |= {key: summary[key] for key in ("sure", "suspicious", "agreed", "seconds")}
    return found | {"run": summary["key"], "command": "python scripts/sanitize.py " + " ".join(cell.words(tiny))}


def groups(lines: Sequence[dict]) -> list[tuple[tuple, list[dict]]]:
    """The cells of one trigger, rate and denoiser, which differ in the seed."""
    keys = product(TRIGGERS, RATES, SOURCES)
    found = {
        key: [each for each in lines if (each["trigger"], each["rate"], each["trained_on"]) == key] for key in keys
    }
    return [(key, mine) for key, mine in found.items() if mine]


def over_seeds(mine: Sequence[dict], name: str) -> str:
    """The mean of a figure over the seeds, with the Wilson interval for as many images as one seed has."""
    share = sum(each[name] for each in mine) / len(mine) / 100
    low, high = wilson(share, mine[0][f"{name} n"])
    return f"{100 * share:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def text(lines: list[dict], total: int) -> str:
    """The lines as a table for people."""
    columns = ["trigger", "rate", "denoiser trained on", "seeds", *NAMES.values(), "target class found"]
    table = []
    for (trigger, rate, source), mine in groups(lines):
        cells = [trigger, f"{rate:g}", source, f"{len(mine)}", *(over_seeds(mine, name) for name in NAMES)]
        table.append([*cells, f"{sum(each['found'] for each in mine)} of {len(mine)}"])
    note = (
        "Percent, as the mean over seeds, with 95 % Wilson intervals for the images of one seed. A seed changes the "
        "choice of the poisoned images, all trainings and the noise. 1285 training images; accuracy on 512 test "
        "images, attack success on those outside the target class 0, with the trigger. A positive is an image whose "
        "label is changed. A clean denoiser is the embedded one, which was trained on the same images before they were "
        "poisoned. A poisoned one was trained on the poisoned set itself, by a shorter training.\n"
    )
    left = total - len(lines)
    end = f"\n{left} of {total} cells are not measured yet.\n" if left else ""
    commands = "".join(f"    {one['command']}\n" for one in lines)
    return markdown("Sanitizing of poisoned digits", columns, table) + f"\n{note}{end}\nCommands:\n\n{commands}"


def draw(path: Path, lines: list[dict]) -> None:
    """A panel for each trigger: attack success after sanitizing over the rate, a point for each seed, and before it."""
    figure = Figure(figsize=(4 * len(TRIGGERS), 3.4), layout="constrained")
    for axis, trigger in zip(figure.subplots(1, len(TRIGGERS), sharey=True), TRIGGERS, strict=True):
        mine = [each for each in lines if each["trigger"] == trigger]
        before = [(each["rate"], each["success before"]) for each in mine]
        axis.scatter(*zip(*before, strict=True), color="#999999", marker="_", s=160, label="before") if before else None
        for k, source in enumerate(SOURCES):
            after = [(each["rate"], each["success after"]) for each in mine if each["trained_on"] == source]
            if after:
                rates, successes = zip(*after, strict=True)
                places = [rate * (0.96 + 0.08 * k) for rate in rates]
                axis.scatter(places, successes, color=COLORS[source], s=22, label=f"after, denoiser of {source} data")
        axis.set(title=trigger, xlabel="poisoned images, share of the set", ylim=(-4, 104), xscale="log")
        axis.set_xlim(0.8 * min(RATES), 1.25 * max(RATES))
        axis.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("attack success, %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> int:
    """The command. Returns 0 when the tables and the figures are written."""
    args = outputs.cell_arguments(outputs.cell_parser(__doc__, "64 images, short trainings"))
    todo = missing(args.tiny)
    for cell in todo if args.list else ():
        console.print(cell.name)
    if args.list:
        return 0
    calls = {cell.name: (cell, args.tiny) for cell in todo[: args.only]}
    console.print(f"{len(todo)} cells to run, {len(calls)} of them now")
    for name, summary in side_by_side(finished, calls, args.at_once) if calls else ():
        success = [summary["models"][model]["success"]["value"] for model in ("poisoned", "sanitized")]
        console.print(
            f"{name}: {report.clock(summary['seconds'])}, attack success {success[0]:.1f} to {success[1]:.1f}"
        )
    gone = {*missing(args.tiny)}
    done = [(cell, finished(cell, args.tiny)) for cell in CELLS if cell not in gone]
    if not done:
        raise ValueError("need at least one archived cell, got none: start the study without --only 0")
    table, words, picture = (outputs.target(path, args.write) for path in (TABLE, TEXT, PICTURE))
    lines = [line(cell, summary, args.tiny) for cell, summary in done]
    pd.DataFrame(lines).to_csv(table, index=False, float_format="%.4f")
    record.write_atomic(words, text(lines, len(CELLS)).encode())
    draw(picture, lines)
    for cell, summary in done:
        rounds = MEASURED / summary["key"] / sanitized.PICTURE
        if cell.is_shown and rounds.exists():
            copy = outputs.target(PICTURE.with_name(f"{PICTURE.stem}_{cell.trained_on}.png"), args.write)
            record.write_atomic(copy, rounds.read_bytes())
    console.print(f"{table}, {words}, {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
