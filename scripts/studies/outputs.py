"""What studies share: where they write (a new file, or with --write the one in the repository), and counts."""

import argparse
import json
from pathlib import Path

from dp.output import record
from dp.output.console import console

NEW = Path(__file__).parents[2] / "results" / "studies"  # not in git
FEWEST = 100  # replicates below which a share means nothing


def parser(description: str | None) -> argparse.ArgumentParser:
    """A study's parser, with --write."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = "overwrite the files that are named above; without it the study writes new files into results/studies/"
    made.add_argument("--write", action="store_true", help=words)
    return made


def cell_parser(description: str | None, tiny: str) -> argparse.ArgumentParser:
    """The parser of a study whose cells run side by side: --write, --only, --at-once, --list and --tiny.

    `tiny`: what a cell has with --tiny.
    """
    made = parser(description)
    made.add_argument("--only", type=int, default=None, metavar="N", help="at most N cells in this start")
    made.add_argument("--at-once", type=at_least_one, default=1, metavar="N", help="cells side by side (1)")
    made.add_argument("--list", action="store_true", help="show the cells that are not archived, and run nothing")
    made.add_argument("--tiny", action="store_true", help=f"{tiny}; never with --write")
    return made


def cell_arguments(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of the command for `cell_parser`. Raises ValueError for --tiny with --write."""
    args = made.parse_args()
    if args.tiny and args.write:
        raise ValueError("need --tiny without --write, got both: a tiny table is no result")
    return args


def target(path: Path, write: bool) -> Path:
    """`path` if `write`, else a new file of that name in results/studies/. Its folder is made."""
    if not write:
        free = (NEW / f"{path.stem}-{n}{path.suffix}" for n in range(1, 10**6))
        path = next(new for new in free if not new.exists())
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_measured(data: Path, measured: list[dict], table: Path, text: str, write: bool) -> None:
    """Write what was measured as JSON, and its table, each to its `target`; print the table and where both are."""
    data, table = target(data, write), target(table, write)
    record.write_atomic(data, json.dumps(measured, indent=1).encode())
    record.write_atomic(table, text.encode())
    console.print(text)
    console.print(f"written: {data}, {table}")


def replicates(text: str) -> int:
    """The type of a command line's number of replicates. Raises ArgumentTypeError for fewer than `FEWEST`."""
    if not text.lstrip("-").isdecimal() or int(text) < FEWEST:
        raise argparse.ArgumentTypeError(f"need a whole number of at least {FEWEST}, got {text}")
    return int(text)


def at_least_one(text: str) -> int:
    """The type of a command line's number of images. Raises ArgumentTypeError for less than one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"need a whole number of at least 1, got {text}")
    return int(text)
