"""Score the saved attacked images of a run again: with its own samples, with fresh ones, or by another defense."""

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
from dp.evaluation.stages import Stage
from dp.output import record
from dp.output.run_files import incomplete, is_archived

STAGES = {
    "defended": Stage.ADV,
    "undefended": Stage.ADV,
    "null": Stage.NULL_ADV,
}  # of a run's own samples, by condition
FRESH = "rescore"
FAR = 3.0  # standard deviations: chance alone exceeds them in 0.3 % of paired differences


class Saved(NamedTuple):
    """The rows and attacked images of one condition and seed of a finished run, in the order of their ids."""

    arm: str
    seed: int
    rows: list[Row]
    x_adv: Tensor  # (N,C,H,W) float32 in [0,1]


class Difference(NamedTuple):
    """The share of right samples in a first scoring minus that in a second, in points, with its standard deviation."""

    value: float
    std: float

    @property
    def agree(self) -> bool:
        """True if chance alone explains the difference."""
        return abs(self.value) <= FAR * self.std + 1e-9


def finished(folder: Path) -> dict:
    """The summary of a finished run. Raises ValueError if the folder holds no finished run."""
    if not folder.is_dir():
        raise ValueError(f"need the folder of a run, results/runs/<key>, got {folder}")
    if is_archived(folder):
        raise ValueError(
            f"need the folder of a run, results/runs/<key>, got {folder}, an archived copy: images are not kept there, "
            "run its command again to have them"
        )
    summary = record.read_summary(folder)
    if summary is None:
        raise ValueError(f"need a finished run with {record.SUMMARY}, got {folder}: its command goes on")
    if (folder / record.START).exists() and not _same(summary["config"], record.read_start(folder)["config"]):
        raise ValueError(
            f"need one configuration in {folder / record.SUMMARY} and {record.START}, got two: one of them is damaged; "
            "delete both and run the command again with overwrite=true"
        )
    return summary


def _same(first: dict, second: dict) -> bool:
    """True if two configurations are of one run. Keys that cannot change a row may differ."""
    ignored = first.get("key_ignores", ())
    return all(first.get(key) == second.get(key) for key in first.keys() | second.keys() if key not in ignored)


def saved(folder: Path) -> list[Saved]:
    """The rows and attacked images of a finished run, by condition and seed.

    Raises ValueError if rows or attacked images are missing or damaged.
    """
    parts = [record.read_part(path) for path in sorted(folder.glob("part-*.safetensors"))]
    images = {(p["arm"], p["seed"], int(i)): x for p in parts for i, x in zip(p["ids"], p["x_adv"], strict=True)}
    rows = record.read_rows(folder)
    problem = incomplete(list(rows.values()), finished(folder))
    if problem:
        damage = "; ".join(record.damaged_rows(folder)) or "a file is missing or torn"
        todo = f"delete {folder / record.SUMMARY} and start the run again, which computes what is missing"
        raise ValueError(f"need every row of a finished run in {folder}, got {problem} ({damage}): {todo}")
    missing = len(rows.keys() - images.keys())
    if missing:
        raise ValueError(
            f"need part-*.safetensors with the attacked images of every row, got {folder} without {missing}: its rows "
            "are good, but these images are lost; run its command again with overwrite=true to have them"
        )
    groups: dict[tuple[str, int], list[int]] = {}
    for arm, seed, i in sorted(rows):
        groups.setdefault((arm, seed), []).append(i)
    return [
        Saved(arm, seed, [rows[arm, seed, i] for i in ids], torch.stack([images[arm, seed, i] for i in ids]))
        for (arm, seed), ids in groups.items()
    ]


def score(
    model: Defended, evaluation: Evaluation, group: Saved, stage: str, on_batch: Callable[[int], None] = lambda n: None
) -> list[Row]:
    """The rows of `group`, with `evaluation.votes` other samples by `model` of each attacked image.

    As in a run, a call has `evaluation.lanes` images. `stage` names the noise. `on_batch(images)` is called after every
    batch.
    """
    ids, x = [row["id"] for row in group.rows], group.x_adv.to(evaluation.device)
    votes, lanes, rng = evaluation.votes, evaluation.lanes, evaluation.rng
    logits = fresh_samples(model, x, ids, group.seed, stage, votes, lanes, on_batch, rng=rng)
    return [rescored(row, one, evaluation.ties) for row, one in zip(group.rows, logits, strict=True)]


def rescored(row: Row, logits: Tensor, ties: str) -> Row:
    """A row with new samples of its attacked image. `logits`: (samples,K); `ties`: see `metrics.vote`."""
    decisions, tied = decided(logits, ties)
    classes = logits.argmax(dim=1).tolist()
    return Row(**{**row, "adv": classes, "ties": int(tied), **{f"adv_{rule}": c for rule, c in decisions.items()}})


def unequal(before: Sequence[Row], after: Sequence[Row]) -> int:
    """The number of rows in which any sample has another class."""
    return sum(a["adv"] != b["adv"] for a, b in zip(before, after, strict=True))


def difference(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Difference:
    """The paired difference over images: the share of right samples before, minus that after.

    If both scorings use the same defense, chance alone divides the right samples of an image between them. Of f right
    ones among 2R, the first scoring then has a hypergeometric number, with variance f (2R-f) / (4 (2R-1)). With one
    sample per row this is McNemar's test. Raises ValueError if the numbers of samples differ.
    """
    total = spread = 0.0
    for a, b in zip(before, after, strict=True):
        first, second = (sum(c == row["label"] for c in row["adv"]) for row in (a, b))
        samples, f = len(a["adv"]), first + second
        if len(b["adv"]) != samples:
            raise ValueError(f"need as many samples in both scorings, got {samples} and {len(b['adv'])}")
        total += (first - second) / samples
        spread += f * (2 * samples - f) / (samples**2 * (2 * samples - 1))
    return Difference(100 * total / len(before), 100 * math.sqrt(spread) / len(before))


def eight_bits(group: Saved) -> Saved:
    """The same images, rounded as an 8-bit file would hold them."""
    return group._replace(x_adv=(group.x_adv * 255).round() / 255)
