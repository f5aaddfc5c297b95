"""Saved attacked images scored again: with the run's own draws, with fresh ones, or by another defence."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dp.defense.defended import Defended
from dp.evaluation.draws import decided, fresh_samples
from dp.evaluation.evaluate import Evaluation
from dp.evaluation.rows import Row
from dp.output import record

STAGES = {"defended": "adv", "undefended": "adv", "null": "null-adv"}  # of a run's own draws, by arm
FRESH = "rescore"
FAR = 3.0  # standard deviations of a paired difference that chance rarely exceeds: 0.3 %


class Saved(NamedTuple):
    """What a finished run holds of one arm and seed, images in the order of their ids."""

    arm: str
    seed: int
    rows: list[Row]
    x_adv: Tensor  # (N,C,H,W) float32


class Difference(NamedTuple):
    """Of the share of right draws: first minus second scoring, percent, and its standard deviation."""

    value: float
    std: float

    @property
    def agree(self) -> bool:
        return abs(self.value) <= FAR * self.std + 1e-9


def finished(folder: Path) -> dict:
    """The summary of a finished run. Raises ValueError for a folder that is none."""
    if not folder.is_dir():
        raise ValueError(f"need the folder of a run, results/runs/<key>, got {folder}")
    summary = record.read_summary(folder)
    if summary is None:
        raise ValueError(f"need a finished run with {record.SUMMARY}, got {folder}: start it again, it goes on")
    return summary


def saved(folder: Path) -> list[Saved]:
    """All arms and seeds of a finished run. Raises ValueError where attacked images are missing."""
    parts = [record.read_part(path) for path in sorted(folder.glob("part-*.safetensors"))]
    images = {(p["arm"], p["seed"], int(i)): x for p in parts for i, x in zip(p["ids"], p["x_adv"], strict=True)}
    rows = record.read_rows(folder)
    gone = len(rows.keys() - images.keys())
    if gone or not rows:
        raise ValueError(f"need part-*.safetensors with the attacked images of every row, got {folder} without {gone}")
    found: dict[tuple[str, int], list[int]] = {}
    for arm, seed, i in sorted(rows):
        found.setdefault((arm, seed), []).append(i)
    return [
        Saved(arm, seed, [rows[arm, seed, i] for i in ids], torch.stack([images[arm, seed, i] for i in ids]))
        for (arm, seed), ids in found.items()
    ]


def score(
    model: Defended, evaluation: Evaluation, kept: Saved, stage: str, on_batch: Callable[[int], None] = lambda n: None
) -> list[Row]:
    """The rows of `kept` with other draws of the attacked images: `evaluation.votes` of `model`, `evaluation.lanes`
    images a call as in a run; `stage` names the noise. `on_batch(images)` after every batch.
    """
    ids, x = [row["id"] for row in kept.rows], kept.x_adv.to(evaluation.device)
    logits = fresh_samples(model, x, ids, kept.seed, stage, evaluation.votes, evaluation.lanes, on_batch)
    return [rescored(row, mine, evaluation.ties) for row, mine in zip(kept.rows, logits, strict=True)]


def rescored(row: Row, logits: Tensor, ties: str) -> Row:
    """The row of an attacked image whose draws gave these logits, (draws,K)."""
    by, tied = decided(logits, ties)
    classes = logits.argmax(dim=1).tolist()
    return Row(**{**row, "adv": classes, "ties": int(tied), **{f"adv_{rule}": c for rule, c in by.items()}})


def unequal(before: Sequence[Row], after: Sequence[Row]) -> int:
    """Rows in which any draw has another class."""
    return sum(a["adv"] != b["adv"] for a, b in zip(before, after, strict=True))


def difference(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Difference:
    """Paired over images: the share of right draws before minus after.

    Where both are draws of the same defence, each image's right draws are dealt to the two scorings by chance: of f
    right ones among 2R, the first has a hypergeometric number, with variance f (2R-f) / (4 (2R-1)). One draw a row
    makes this McNemar's test.
    """
    total = spread = 0.0
    for a, b in zip(before, after, strict=True):
        first, second = (sum(c == row["label"] for c in row["adv"]) for row in (a, b))
        draws, f = len(a["adv"]), first + second
        if len(b["adv"]) != draws:
            raise ValueError(f"need as many draws in both scorings, got {draws} and {len(b['adv'])}")
        total += (first - second) / draws
        spread += f * (2 * draws - f) / (draws**2 * (2 * draws - 1))
    return Difference(100 * total / len(before), 100 * math.sqrt(spread) / len(before))


def eight_bits(kept: Saved) -> Saved:
    """The images as an 8-bit file would hold them."""
    return kept._replace(x_adv=(kept.x_adv * 255).round() / 255)
