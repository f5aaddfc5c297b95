"""Write the result card of a finished run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dp.files.cache import digest, is_there, locate
from dp.output import record
from dp.output.archived import rows_in
from dp.output.card import CARD, TEXT, Card, Weights, card_of, written
from dp.output.card_text import card_text
from dp.runs.compose import nodes
from dp.runs.errors import USER_ERRORS
from dp.runs.repeat import command_of
from dp.weights.needed import needed

GIVEN = "dp.runs.given."  # objects that only the Python program has


def write_card(folder: Path) -> Card | None:
    """Write card.json and card.md into the folder of a finished run, archived or not, and return the card.

    Returns None if the run is not finished. Raises ValueError for rows that are damaged.
    """
    summary = record.read_summary(folder)
    if summary is None:
        return None
    card = card_from(summary, rows_in(folder), folder.name)
    put_card(folder, card)
    return card


def put_card(folder: Path, card: Card) -> None:
    """Write card.json and card.md into a folder."""
    record.write_atomic(folder / CARD, written(card))
    record.write_atomic(folder / TEXT, card_text(card).encode())


def card_from(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], key: str) -> Card:
    """The card of a run, with its command and the hashes of its files as they are on this machine."""
    return card_of(summary, rows, key, repeats(summary["config"]), weights_of(summary["config"]))


def repeats(config: dict) -> str | None:
    """The command that repeats a run, or None if today's options give none."""
    if any(str(node.get("_target_", "")).startswith(GIVEN) for node in nodes(config)):
        return None
    try:
        return command_of(config)
    except USER_ERRORS:  # an option is gone, or a folder of plug-ins
        return None


def weights_of(config: dict) -> list[Weights]:
    """The files of weights and data that a configuration needs, by name. Folders have no hash."""
    found: dict[str, str | None] = {asset.file: asset.sha256 for asset in needed(config)}
    for asset in needed(config):
        if asset.sha256 is None and is_there(asset) and locate(asset).is_file():
            found[asset.file] = digest(locate(asset))
    return [{"file": file, "sha256": found[file]} for file in sorted(found)]
