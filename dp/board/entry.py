"""An entry of the board: a card, and beside it one file with the attacked images and the class of every sample."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dp.files.cache import Asset, digest
from dp.files.fetch import fetch
from dp.output import record, rescore
from dp.output.archived import ALL, arrays_of, rows_in, rows_of
from dp.output.card import CARD, Card, read_card
from dp.output.rescore import Saved
from dp.output.run_files import is_archived
from dp.runs.cards import card_from, put_card

IMAGES = "images.safetensors"
LARGEST = 2_000_000  # bytes of a file in the repository
ARMS = ("defended", "null", "undefended")  # sorted, as the rows of a run are


def submit(folder: Path, board: Path, url: str | None = None) -> Path:
    """Write the entry of the finished run in `folder` into its own folder below `board`, and return that.

    `url`: where the file of attacked images will lie. An archived run keeps no images, so its entry has none. Raises
    ValueError for a run that is not finished or damaged.
    """
    summary = record.read_summary(folder) if is_archived(folder) else rescore.finished(folder)
    if summary is None:
        raise ValueError(f"need a finished run with {record.SUMMARY}, got {folder}: its command goes on")
    entry, groups = board / folder.name, [] if is_archived(folder) else rescore.saved(folder)
    rows = [dict(row) for group in groups for row in group.rows] if groups else rows_in(folder)
    card = card_from(summary, rows, folder.name)
    entry.mkdir(parents=True, exist_ok=True)
    if groups:
        data = save(arrays_of(rows) | stacked(groups))
        record.write_atomic(entry / IMAGES, data)
        sha256 = hashlib.sha256(data).hexdigest()
        card["images"]["file"] = {"name": IMAGES, "bytes": len(data), "sha256": sha256, "url": url}
    put_card(entry, card)
    return entry


def stacked(groups: list[Saved]) -> dict[str, Tensor]:
    """The attacked images of a run as `<arm>.x_adv` (seeds,images,C,H,W), by seed and id."""
    arms: dict[str, list[Tensor]] = {}
    for group in sorted(groups, key=lambda group: (group.arm, group.seed)):
        arms.setdefault(group.arm, []).append(group.x_adv.float())
    return {f"{arm}.x_adv": torch.stack(seeds).contiguous() for arm, seeds in arms.items()}


def entries(board: Path) -> list[Path]:
    """The cards below a board's folder, sorted. Raises ValueError if there is none."""
    found = sorted(board.glob(f"*/{CARD}"))
    if not found:
        raise ValueError(f"need cards in {board}, got none: dp board card results/runs/<key>")
    return found


def images_beside(path: Path, card: Card, on_bytes: Callable[[int, int | None], None]) -> dict[str, Tensor]:
    """The arrays in the file of attacked images of the card at `path`. It is fetched if only its address is there.

    Raises ValueError in one line for a card without images, a file with another hash, and a damaged one.
    """
    file = card["images"]["file"]
    if file is None:
        raise ValueError(
            f"need the attacked images of {card['key']}, got a card without: an archived run keeps none, so run its "
            "command again, then dp board card"
        )
    images = path.parent / IMAGES
    if not images.exists() and file["url"] is not None:
        name = f"board/{file['sha256'][:16]}.safetensors"
        images = fetch(Asset(name, file["url"], round(file["bytes"] / 1e6, 1), file["sha256"]), on_bytes)
    if not images.is_file():
        raise ValueError(f"need {images} with the attacked images, got no such file, and the card has no address")
    found = digest(images)
    if found != file["sha256"]:
        raise ValueError(
            f"need {images} with SHA-256 {file['sha256'][:12]}..., got {found[:12]}...: it is another file"
        )
    try:
        return load_file(images)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"need {images} as dp board card writes it, got {error}") from None


def groups_of(arrays: dict[str, Tensor]) -> list[Saved]:
    """The rows and attacked images in the file of a card, by condition and seed.

    Raises ValueError in one line for arrays that are missing or do not have one value for each seed and image.
    """
    missing = [name for name in ("ids", "seeds", "labels") if name not in arrays or arrays[name].dim() != 1]
    missing += [f"{arm}.{name}" for arm in ARMS for name in (*ALL, "adv", "x_adv") if f"{arm}.{name}" not in arrays]
    missing += [name for arm in ("defended", "undefended") if (name := f"{arm}.clean") not in arrays]
    if missing:
        raise ValueError(f"need {missing[0]} in the file of attacked images, got a file without")
    seeds, ids = arrays["seeds"].tolist(), arrays["ids"].tolist()
    for name, values in arrays.items():
        if "." in name and values.shape[:2] != (len(seeds), len(ids)):
            got = "x".join(map(str, values.shape[:2]))
            raise ValueError(f"need {name} of {len(seeds)} seeds x {len(ids)} images, got {got}")
    rows = rows_of(arrays)
    size = len(ids)
    return [
        Saved(arm, seed, rows[(a * len(seeds) + s) * size :][:size], arrays[f"{arm}.x_adv"][s])  # pyright: ignore[reportArgumentType]
        for a, arm in enumerate(ARMS)
        for s, seed in enumerate(seeds)
    ]


def read_entry(path: Path) -> Card:
    """The card in a file, or in the folder of an entry."""
    return read_card(path / CARD if path.is_dir() else path)
