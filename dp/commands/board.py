"""dp board: result cards that anybody can check, and the ranking that is built from them.

card   write the entry of finished runs: the card, and one file with the attacked images
check  score the images of cards again, with the run's own noise and with fresh noise; the exit code is 1 if one is
       refused, with one line that says why
build  rank the defenses of all cards
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from dp.board import check, page
from dp.board.composition import todays
from dp.board.entry import IMAGES, LARGEST, groups_of, images_beside, read_entry, submit
from dp.commands.options import wide_console
from dp.output.card import CARD, Card
from dp.output.card_text import name_of
from dp.output.progress import Bar, Downloads
from dp.runs.build import build
from dp.runs.caveats import caveats_of
from dp.runs.errors import DONE, USER_ERRORS, command, sentence
from dp.runs.pipeline import fetch_missing
from dp.runs.sources import sources_hash

BOARD = Path("results/board")
REFUSED = 1  # exit code


def write_cards(folders: Sequence[Path], board: Path, url: str | None, console: Console) -> int:
    """Write the entry of each run below `board`."""
    for folder in folders:
        entry = submit(folder, board, url)
        file = read_entry(entry)["images"]["file"]
        if file is None:
            console.print(f"{entry / CARD}: without images, so it cannot be checked")
            continue
        console.print(f"{entry / CARD}, {IMAGES} ({file['bytes']} bytes)")
        if file["bytes"] > LARGEST:
            todo = "leave it out of git" if url else "put it at an address, and write the card again with --url ADDRESS"
            console.print(f"{entry / IMAGES} is larger than {LARGEST / 1e6:g} MB: {todo}")
    return DONE


def checked(path: Path, config_dirs: Sequence[str], fresh: str, console: Console) -> Iterator[str]:
    """Check a card. Yields a line for everything that holds, and raises ValueError in one line for what does not."""
    card = read_entry(path)
    path = path / CARD if path.is_dir() else path
    setup = todays(card, config_dirs)
    yield f"protocol {name_of(card['protocol'])}, key and versions are those of today's options"
    with Downloads(console) as downloads:
        name, size = f"the images of {card['key']}", (card["images"]["file"] or {}).get("bytes", 0) / 1e6
        groups = groups_of(images_beside(path, card, downloads.file(name, size)))
    fetch_missing(setup.config)
    evaluation = build(setup.config)
    check.check_data(card, groups, evaluation)
    yield f"every image and seed is there, within {evaluation.threat.norm} {setup.config['threat_model']['eps']}"
    check.check_facts(card, groups, evaluation, caveats_of(setup, evaluation).as_data())
    yield "the numbers of the card are those of its file"
    yield code_line(card, setup.config)
    images = sum(len(group.rows) * (1 if group.arm == "null" else 2) for group in groups)
    for stage, words, judge in (
        (None, "first scoring, the run's own noise", check.first_scoring),
        (fresh, "second scoring, fresh noise", check.second_scoring),
    ):
        with Bar(console, images) as bar:
            done = [0]

            def more(n: int, bar: Bar = bar, done: list[int] = done, words: str = words) -> None:
                done[0] += n
                bar(done[0], words)

            found = [judge(one) for one in check.scorings(groups, evaluation, stage, more)]
        yield f"{words}: {'; '.join(found)}"


def code_line(card: Card, config: dict) -> str:
    """Whether the code that made the rows is the one that scores them again. The first scoring shows if it matters."""
    code = card["code"]
    if code["sha256"] == sources_hash(config):
        return "the code is that of the run"
    changed = ", with changes that are not in it" if code["dirty"] else ""
    return f"the run was made by other code (commit {(code['commit'] or 'not recorded')[:10]}{changed})"


def check_cards(paths: Sequence[Path], config_dirs: Sequence[str], fresh: str, console: Console) -> int:
    """Check all cards. A card that is refused is one line on standard error."""
    refused = 0
    for path in paths:
        console.print(str(path))
        try:
            for line in checked(path, config_dirs, fresh, console):
                console.print(f"  {line}")
            console.print("  accepted")
        except USER_ERRORS as error:
            refused += 1
            print(f"refused: {path}: {sentence(error)}", file=sys.stderr)
    return REFUSED if refused else DONE


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if all is done, 1 if a card is refused, 2 after a user's error, 130 if interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="card | check | build")
    card = verbs.add_parser("card", help="write the entry of finished or archived runs")
    card.add_argument(
        "runs", nargs="+", type=Path, help="folders of runs, results/runs/<key> or results/measured/<key>"
    )
    card.add_argument("--url", help="where the file of attacked images will lie, if it is too large for the repository")
    checks = verbs.add_parser("check", help="score the images of cards again")
    checks.add_argument("cards", nargs="+", type=Path, help="cards, or folders of entries")
    checks.add_argument("--config-dir", dest="config_dirs", action="append", default=[], metavar="DIR")
    checks.add_argument("--noise", default="board", help="a word; another one gives other fresh noise")
    builds = verbs.add_parser("build", help="rank the defenses of all cards")
    for verb in (card, builds):
        verb.add_argument("--board", type=Path, default=BOARD, help="the folder of the board (default %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # as in a run, because the last bits of a sum depend on it
    console = wide_console()

    def board() -> int:
        if args.verb == "card":
            return write_cards(args.runs, args.board, args.url, console)
        if args.verb == "check":
            return check_cards(args.cards, args.config_dirs, f"fresh-{args.noise}", console)
        for path in page.build(args.board):
            console.print(path)
        return DONE

    return command(board, "interrupted; nothing of it is saved")
