"""dp fetch: download the weights and data of a configuration into the cache folder (DP_CACHE, or ~/.cache/dp)."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from dp.commands.options import parser, wide_console
from dp.files.cache import ASSETS, Asset, cache_folder, is_there, locate
from dp.files.download import sources
from dp.files.fetch import fetch
from dp.output.progress import Downloads
from dp.runs.compose import composed
from dp.runs.errors import DONE, MISTAKE, USER_ERRORS, command, sentence
from dp.runs.help import options
from dp.weights.needed import needed

LISTED = ("dataset", "classifier", "denoiser", "purifier", "training")
EPILOG = """examples:
  dp fetch dataset=cifar10 purifier=hetero          what `dp run dataset=cifar10 purifier=hetero` needs
  dp fetch +experiment=table1/hetero --dry-run      what a preset needs, and its size
  dp fetch --list                                   every file of every option

An interrupted download goes on where it stopped. Exit codes: 0 all files are there; 2 a file could not be fetched, or a
mistake in the command; 130 interrupted."""


def whereabouts(asset: Asset) -> str:
    """The state of a file: `missing`, `embedded` or `there`."""
    if not is_there(asset):
        return "missing"
    return "embedded" if locate(asset).is_relative_to(ASSETS) else "there"


def table(assets: dict[Asset, str], last: str) -> Table:
    """A table with one row for each file. `last`: the head of a column for the values of `assets`."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("file", overflow="fold")
    result.add_column("MB", justify="right")
    for name in ("state", "address", *([last] if last else [])):
        result.add_column(name, overflow="fold")
    for asset, text in assets.items():
        state = whereabouts(asset)
        size = f"{locate(asset).stat().st_size / 1e6:.1f}" if state != "missing" and locate(asset).is_file() else "?"
        size = f"{asset.megabytes:g}" if asset.megabytes is not None else size
        result.add_row(asset.file, size, state, "\n".join(asset.urls), *([text] if last else []))
    return result


def total(assets: list[Asset]) -> str:
    """A line with the size of the downloads, their folder, and the number of files that cannot be fetched."""
    by_hand = [asset for asset in assets if not can_be_fetched(asset)]
    fetched = [asset for asset in assets if asset not in by_hand]
    unknown = sum(asset.megabytes is None for asset in fetched)
    more = f" and {unknown} of unknown size" if unknown else ""
    rest = f"; {len(by_hand)} more cannot be fetched" if by_hand else ""
    size = sum(asset.megabytes or 0 for asset in fetched)
    return f"to download: {len(fetched)} files, {size:g} MB{more}, into {cache_folder()}{rest}"


def can_be_fetched(asset: Asset) -> bool:
    """True if the file has an address that can be downloaded."""
    try:
        sources(asset)
    except ValueError:
        return False
    return True


def option_words(group: str, option: str, config_dirs: Sequence[str | Path]) -> list[str]:
    """The words of a command with an option: on CIFAR-10, and a recipe on the dataset of its name, if it names one."""
    if group == "dataset":
        return [f"dataset={option}"]
    own = option.partition("_")[0] if group == "training" else ""
    dataset = own if own in options("dataset", config_dirs) else "cifar10"
    return [f"dataset={dataset}", f"{'+' if group == 'training' else ''}{group}={option}"]


def list_all(console: Console, config_dirs: Sequence[str | Path] = ()) -> None:
    """Print every file of every option, with the options that need it."""
    wanted: dict[Asset, str] = {}
    unknown: list[str] = []
    for group in LISTED:
        for option in options(group, config_dirs):
            name = f"{group}={option}"
            try:
                assets = needed(composed(*option_words(group, option, config_dirs), config_dirs=config_dirs)[group])
            except USER_ERRORS as error:
                unknown.append(f"{name}: not known ({sentence(error)})")
                continue
            for asset in assets:
                wanted[asset] = f"{wanted[asset]}, {name}" if asset in wanted else name
    console.print(table(wanted, "for"))
    for line in [*unknown, total([asset for asset in wanted if not is_there(asset)])]:
        console.print(line)


def bring(assets: list[Asset], console: Console) -> list[str]:
    """Fetch the files. Returns one line of text for each file that could not be fetched."""
    failed = []
    with Downloads(console) as downloads:
        for asset in assets:
            try:
                path = fetch(asset, downloads.file(asset.file, asset.megabytes))
            except (ValueError, OSError) as error:
                failed.append(" ".join(str(error).split()))
            else:
                console.print(f"there: {path}")
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if all files are there, 2 after an error or a failed download, 130 if interrupted."""
    arguments = parser(__doc__, "configuration, as for dp run (default: digits, which is embedded)", EPILOG)
    arguments.add_argument("--list", action="store_true", help="list every file of every option; download nothing")
    arguments.add_argument("--dry-run", action="store_true", help="list the needed files and sizes; download nothing")
    args = arguments.parse_intermixed_args(argv)
    console = wide_console()

    def fetch_all() -> int:
        if args.list:
            list_all(console, args.config_dirs)
            return DONE
        assets = needed(composed(*args.overrides, config_dirs=args.config_dirs))
        console.print(table(dict.fromkeys(assets, ""), ""))
        absent = [asset for asset in assets if not is_there(asset)]
        console.print(total(absent))
        failed = [] if args.dry_run else bring(absent, console)
        for line in failed:
            print(f"error: {line}", file=sys.stderr)
        return MISTAKE if failed else DONE

    return command(fetch_all, "interrupted; the same command goes on where it stopped")
