"""dp sanitize: poison a training set, sanitize it with a diffusion model (DataElixir), and measure what that changes.

  dp sanitize dataset=digits                                       a patch in a tenth of the images, a minute or two
  dp sanitize dataset=digits sanitizer.denoiser_trained_on=poisoned    with a denoiser of the poisoned set: it fails
  dp sanitize poison=blended poison.rate=0.05 sanitizer.seed=1     another trigger (patch, blended, sinusoidal)
  dp sanitize --config-dir mine dataset=NAME poison=none           a set of your own, as it is

It takes dataset, classifier, denoiser, sanitizer, poison, device, results and overwrite. Classifiers are trained by the
recipe conf/training/<dataset>_classifier.yaml. The folder results/sanitized/<key>/ has summary.json, report.md,
rounds.png, the changed labels and images (changes.csv, changes.safetensors), and the weights. The same command goes on
where it stopped. Exit codes: 0 done, 2 a mistake in the command, 130 interrupted.
"""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from dp.commands.options import parser
from dp.output.console import console
from dp.output.report import clock
from dp.runs import sanitize, sanitized
from dp.runs.errors import DONE, command
from dp.runs.signals import stoppable
from dp.sanitizing import report


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if all is done, 2 after a user's error, 130 if interrupted."""
    arguments = parser(__doc__, "the configuration (default: digits, dataelixir, patch)")
    words = "copy summary, report and changed labels to results/measured/sanitized/, which is in git"
    arguments.add_argument("--archive", action="store_true", help=words)
    args = arguments.parse_intermixed_args(argv)

    def work() -> int:
        with stoppable():
            return run(args.overrides, args.config_dirs, args.archive)

    return command(work, "interrupted before the first training; the same command starts again")


def run(words: Sequence[str], config_dirs: Sequence[str] = (), archive: bool = False) -> int:
    """Sanitize, and print the table. Returns 0."""
    job = sanitized.configured(words, config_dirs)
    summary = sanitize.judged(job)
    names, *lines = report.table(summary)
    table = Table(box=box.SIMPLE_HEAD, title=Text(summary["key"]), padding=(0, 1))
    for k, name in enumerate(names):
        table.add_column(name, justify="right" if k else "left")
    for cells in lines:
        table.add_row(*cells)
    console.print(table)
    for line in report.notes(summary):
        console.print(line)
    console.print(f"{summary['evaluations']:,} network evaluations; {clock(summary['seconds'])}; {summary['device']}")
    console.print(f"results: {job.folder}")
    if archive:
        console.print(f"copied: {sanitized.archive(job.folder)}")
    return DONE
