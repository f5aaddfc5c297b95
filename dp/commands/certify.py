"""dp certify: certify within which l2 radius no attack can change the prediction, by randomized smoothing.

  dp certify dataset=digits certificate=one_shot certificate.sigma=0.5    one denoiser call before the classifier
  dp certify certificate=densepure certificate.base.steps=2               a vote of several reverse chains
  dp certify certificate=none certificate.sigma=0.5                       the bare classifier, the baseline
  dp certify dataset=cifar10 certificate=one_shot shard=1/4               the papers' budget, a quarter of the images

It takes dataset, classifier, denoiser, certificate, device, dtype, results, shard and overwrite. The folder
results/certified/<key>/ has a line for each image (rows-*.tsv, in the end certified.tsv), summary.json and
certified.png. The same command goes on where it stopped. Exit codes: 0 done, 2 a mistake in the command, 130
interrupted.
"""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from dp.certification import rows
from dp.certification.curve import Curve, curve
from dp.certification.picture import draw
from dp.certification.published import published_lines
from dp.commands.options import parser
from dp.output.console import console
from dp.output.report import clock
from dp.runs import certified
from dp.runs.errors import DONE, command
from dp.runs.signals import stoppable

PICTURE = "certified.png"
BARE = "none"  # the certificate of the bare classifier
SAME = ("sigma", "alpha")  # settings in which the bare classifier's curve must agree


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if all is done, 2 after a user's error, 130 if interrupted."""
    arguments = parser(__doc__, "the configuration (default: digits, one_shot)")
    words = "copy the rows and the summary to results/measured/certified/, which is in git"
    arguments.add_argument("--archive", action="store_true", help=words)
    args = arguments.parse_intermixed_args(argv)

    def work() -> int:
        with stoppable():
            return run(args.overrides, args.config_dirs, args.archive)

    return command(work, "interrupted before the first image; the same command starts again")


def run(words: Sequence[str], config_dirs: Sequence[str] = (), archive: bool = False) -> int:
    """Certify, print the table and draw the picture. Returns 0, also while other shards are not finished."""
    job = certified.configured(words, config_dirs)
    summary = certified.judged(job)
    if summary is None:
        return DONE
    found = bares_of(summary, job.folder.parent)
    bare = next((each for each in found if each[0]["shape"] == summary["shape"]), None)
    both = [(summary, job.folder), *([bare] if bare else [])]
    names = names_of([each for each, _ in both])
    console.print(table([each for each, _ in both], names))
    for line in notes(summary, bare is None, found[0][0] if found else None):
        console.print(line)
    for line in published_lines(job.config["dataset"]["name"], summary["sigma"]):
        console.print(line)
    curves = [curve_of(name, *each) for name, each in zip(names, both, strict=True)]
    title = f"{summary['key']}: {summary['images']} images, {summary['n']} samples, alpha {summary['alpha']:g}"
    draw(job.folder / PICTURE, curves, title)
    console.print(f"results: {job.folder}")
    if archive:
        console.print(f"copied: {certified.archive(job.folder)}")
    return DONE


def curve_of(name: str, summary: dict, folder: Path) -> Curve:
    """The curve of a finished certification."""
    return curve(f"{name}, sigma {summary['sigma']:g}", rows.read(folder / rows.ALL), summary["cap"])


def names_of(summaries: Sequence[dict]) -> list[str]:
    """The names of certificates for people; with the number of samples N where it differs."""
    differ = len({each["n"] for each in summaries}) > 1
    names = ["bare classifier" if each[certified.GROUP] == BARE else each[certified.GROUP] for each in summaries]
    return [f"{name}, N = {each['n']}" if differ else name for name, each in zip(names, summaries, strict=True)]


def bares_of(summary: dict, root: Path) -> list[tuple[dict, Path]]:
    """The finished certifications of the bare classifier that may belong beside another one, with their folders.

    They have the same classifier, images, sigma and alpha. Those with as many samples come first. The size of the
    images may differ: then the radii are not comparable. A summary that cannot be read is left out.
    """
    if summary[certified.GROUP] == BARE:
        return []
    found = []
    for path in sorted([*root.glob("*/summary.json"), *certified.ARCHIVE.glob("*/summary.json")]):
        try:
            other = certified.read_summary(path.parent)
        except ValueError:  # of another folder: no reason to stop
            continue
        if other is None or other[certified.GROUP] != BARE or not (path.parent / rows.ALL).exists():
            continue
        nodes = all(other["config"][key] == summary["config"][key] for key in ("dataset", "classifier", "dtype"))
        if nodes and all(other[key] == summary[key] for key in SAME):
            found.append((other, path.parent))
    return sorted(found, key=lambda each: each[0]["n"] != summary["n"])


def table(summaries: Sequence[dict], names: Sequence[str]) -> Table:
    """Certified accuracy by radius, with intervals: of a certificate, and of the bare classifier beside it, if any."""
    result = Table(box=box.SIMPLE_HEAD, title=Text(summaries[0]["key"]), padding=(0, 1))
    result.add_column("l2 radius", justify="right")
    for name in names:
        result.add_column(f"{name}: certified accuracy, %", justify="right")
        result.add_column("95 % interval", justify="right")
    for lines in zip(*(each["certified"] for each in summaries), strict=True):
        cells = [cell for one in lines for cell in (f"{one['accuracy']:.1f}", f"{one['low']:.1f} - {one['high']:.1f}")]
        result.add_row(f"{lines[0]['radius']:g}", *cells)
    return result


def notes(summary: dict, lonely: bool, other: dict | None) -> list[str]:
    """The lines below the table. `lonely`: there is no certification of the bare classifier beside it. `other`: one of
    the same setting, maybe at another size of the images.
    """
    mean = summary["mean_radius"]
    middle = "none is certified with its label" if mean is None else f"mean radius of those with their label {mean:.3f}"
    lines = [
        f"{summary['images']} images: {summary['abstained']} abstentions; {middle}; largest possible "
        f"{summary['cap']:.3f} (sigma {summary['sigma']:g}, {summary['n']} samples, alpha {summary['alpha']:g})",
        f"{summary['evaluations']:,} network evaluations; {clock(summary['seconds'])}; {summary['device']}",
    ]
    if lonely and other is not None:
        sizes = ["x".join(map(str, each["shape"])) for each in (other, summary)]
        what = f"the bare classifier's curve is left out: it was certified at {sizes[0]}, this one at {sizes[1]}"
        lines.append(f"{what}, and l2 radii at different sizes are not comparable")
    elif lonely and summary[certified.GROUP] != BARE:
        what = f"certificate={BARE} with the same options puts the bare classifier's curve beside it"
        lines.append(f"{what}, unless the denoiser has another image size")
    return lines
