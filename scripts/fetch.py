"""Bring what a configuration needs into the cache folder (DP_CACHE, by default ~/.cache/dp): weights and data."""

import argparse
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

import run
from dp.files.cache import ASSETS, Asset, cache_folder, locate
from dp.files.download import direct
from dp.files.fetch import fetch, is_there
from dp.output.progress import Downloads
from dp.weights.needed import needed

CONF = Path(__file__).parents[1] / "conf"
LISTED = ("dataset", "classifier", "denoiser")
EPILOG = """examples:
  python scripts/fetch.py dataset=cifar10 purifier=hetero     what `python run.py dataset=cifar10 purifier=hetero` needs
  python scripts/fetch.py +experiment=table1/hetero --dry-run
  python scripts/fetch.py --list

An interrupted download goes on where it stopped. Exit codes: 0 all is there, 2 something could not be fetched or a
mistake in the command, 130 interrupted."""


def whereabouts(asset: Asset) -> str:
    if not is_there(asset):
        return "missing"
    return "embedded" if locate(asset).is_relative_to(ASSETS) else "there"


def table(assets: dict[Asset, str], last: str) -> Table:
    """A row per asset; `last` heads the column of the dictionary's values."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("file", overflow="fold")
    shown.add_column("MB", justify="right")
    for name in ("state", "address", *([last] if last else [])):
        shown.add_column(name, overflow="fold")
    for asset, text in assets.items():
        here = whereabouts(asset)
        size = f"{locate(asset).stat().st_size / 1e6:.1f}" if here != "missing" and locate(asset).is_file() else "?"
        size = f"{asset.megabytes:g}" if asset.megabytes is not None else size
        shown.add_row(asset.file, size, here, asset.url or "", *([text] if last else []))
    return shown


def total(assets: list[Asset]) -> str:
    """How much is to be downloaded, where it goes, and how much must come otherwise."""
    by_hand = [asset for asset in assets if not can_be_fetched(asset)]
    fetched = [asset for asset in assets if asset not in by_hand]
    unknown = sum(asset.megabytes is None for asset in fetched)
    more = f" and {unknown} of unknown size" if unknown else ""
    rest = f"; {len(by_hand)} more cannot be fetched" if by_hand else ""
    size = sum(asset.megabytes or 0 for asset in fetched)
    return f"to download: {len(fetched)} files, {size:g} MB{more}, into {cache_folder()}{rest}"


def can_be_fetched(asset: Asset) -> bool:
    try:
        direct(asset)
    except ValueError:
        return False
    return True


def options(group: str) -> list[str]:
    return sorted(p.relative_to(CONF / group).with_suffix("").as_posix() for p in (CONF / group).rglob("*.yaml"))


def list_all(console: Console) -> None:
    """Every file of every option, and the options that need it."""
    wanted: dict[Asset, str] = {}
    beside: list[str] = []
    for group in LISTED:
        for option in options(group):
            name = f"{group}={option}"
            try:
                assets = needed(run.composed(*dict.fromkeys(("dataset=cifar10", name)))[group])
            except run.USER_ERRORS as error:
                beside.append(f"{name}: not known ({run.sentence(error)})")
                continue
            for asset in assets:
                wanted[asset] = f"{wanted[asset]}, {name}" if asset in wanted else name
    console.print(table(wanted, "for"))
    for line in [*beside, total([asset for asset in wanted if not is_there(asset)])]:
        console.print(line)


def bring(assets: list[Asset], console: Console) -> list[str]:
    """A line for each that could not be fetched; the others are."""
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "overrides", nargs="*", help="configuration, as for run.py (default: digits, which is embedded)"
    )
    parser.add_argument("--list", action="store_true", help="every file of every option; downloads nothing")
    parser.add_argument("--dry-run", action="store_true", help="say what is needed and how big it is, and stop")
    args = parser.parse_intermixed_args()
    console = Console(soft_wrap=True, markup=False, highlight=False, width=None if sys.stdout.isatty() else 160)
    try:
        if args.list:
            list_all(console)
            return 0
        assets = needed(run.composed(*args.overrides))
        console.print(table(dict.fromkeys(assets, ""), ""))
        absent = [asset for asset in assets if not is_there(asset)]
        console.print(total(absent))
        failed = [] if args.dry_run else bring(absent, console)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on where it stopped")
        return 130
    except run.USER_ERRORS as error:
        failed = [run.sentence(error)]
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
