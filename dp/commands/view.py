"""dp view: write finished runs as a page for the browser, down to the single image.

The page is a folder of static files. It needs no server and no network: open its index.html.
"""

import argparse
import sys
import webbrowser
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch

from dp.commands.tables import line
from dp.output.console import console
from dp.output.progress import Bar
from dp.output.report import headline
from dp.page.source import Run, folders_of, read
from dp.page.write import begin, files_of, size_of, write_files, write_run
from dp.runs.errors import DONE, command

DEFAULTS, PAGE = (Path("results/runs"), Path("results/measured")), Path("results/page")


def run_line(run: Run) -> dict:
    """The line of a run in the page's table: that of `dp tables` for the protocol's first decision rule."""
    rule, side, _ = headline(run.summary)
    cells = line(run.summary, run.key, side, rule)
    return {name: None if value != value else value for name, value in cells.items()}


def write(folders: Sequence[Path], out: Path, purify: int | None) -> int:
    """Write the page of all runs in `folders`, but of those that cannot be read, which a line names. Returns the number
    of runs on the page. Raises ValueError if there is none.
    """
    paths = folders_of(folders)
    begin(out)
    lines = []
    with Bar(console, len(paths)) as bar:
        for k, path in enumerate(paths):
            bar(k, path.name)
            try:
                run = read(path)
                write_run(out, run, purify, lambda text, key=run.key: console.print(f"{key}: {text}"))
                lines.append(run_line(run))
            except ValueError as error:
                console.print(f"left out {path.name}: {error}")
    if not lines:
        raise ValueError("need a run that can be read, got none: the lines above say why")
    write_files(out, lines)
    return len(lines)


def bundle(out: Path) -> Path:
    """Pack a page as one file beside its folder, with index.html at its top, and return that."""
    path = out.with_name(out.name + ".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files_of(out):
            archive.write(file, file.relative_to(out))
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if the page is written, 2 after a user's error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = " and ".join(map(str, DEFAULTS))
    parser.add_argument("folders", nargs="*", type=Path, help=f"folders of runs, or of many runs (default: {known})")
    parser.add_argument("--out", type=Path, default=PAGE, help="the folder of the page (default %(default)s)")
    parser.add_argument("--purify", type=int, metavar="N", help="purify the first N images of each run again")
    parser.add_argument("--bundle", action="store_true", help="also pack the page as one zip file, for a static host")
    parser.add_argument("--no-open", action="store_true", help="do not open a browser")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # as in a run, because the last bits of a sum depend on it

    def view() -> int:
        if args.purify is not None and args.purify < 0:
            raise ValueError(f"need --purify >= 0, got {args.purify}")
        folders = args.folders or [folder for folder in DEFAULTS if folder.is_dir() and any(folder.iterdir())]
        if not folders:
            raise ValueError(f"need runs in {known}, got none: dp run makes one")
        runs = write(folders, args.out, args.purify)
        console.print(f"{runs} runs, {size_of(args.out) / 1e6:.1f} MB: open {args.out / 'index.html'} in a browser")
        if args.bundle:
            console.print(f"to upload to a static host: {bundle(args.out)}")
        elif sys.stdout.isatty() and not args.no_open:
            webbrowser.open((args.out / "index.html").absolute().as_uri())
        return DONE

    return command(view, "interrupted; run it again for the whole page")
