"""Check an entry of the board: is it whole, are its images the attacked ones, do they give the numbers of the card?

First come the checks that need no network, then two scorings of the attacked images. The first one has the run's own
noise, so every class must be the stated one, but for 1 in 1000 that another machine rounds differently. The second one
has fresh noise, and must agree within chance.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dp.evaluation.caveats import changes
from dp.evaluation.draws import decided, fresh_samples
from dp.evaluation.evaluate import Evaluation
from dp.evaluation.rows import Row
from dp.evaluation.stages import Stage
from dp.output.card import FREE, Card
from dp.output.rescore import Saved
from dp.runs.cards import card_from
from dp.statistics import metrics
from dp.statistics.rescoring import chance
from dp.threat_models.ball import BALLS, SLACK

ROUNDING = 1000  # of so many samples one may have another class on another machine
REFUSED = 0.01  # the chance that the second scoring refuses an honest entry, over all its tests
# What is scored: the figure, the condition, the images, and the stage of the run's own noise.
SCORED = (
    ("robust", "defended", "adv", Stage.ADV),
    ("standard", "defended", "clean", Stage.CLEAN),
    ("null", "null", "adv", Stage.NULL_ADV),
    ("undefended", "undefended", "adv", Stage.ADV),
    ("undefended_standard", "undefended", "clean", Stage.CLEAN),
)
# Not compared: what a person fills in, what no file shows, and what has a check of its own.
UNSEEN = (*FREE, "code", "device", "seconds", "audit", "unreliable", "command", "images.file")
TAKEN = ("gradients", "straight_through", "differences", "departures", "batch_bound", "nfe", "attack_nfe")


class Scoring(NamedTuple):
    """The stated classes of one condition and those of another scoring, an item for each image and seed."""

    figure: str
    stated: list[list[int]]
    again: list[list[int]]
    decided: int  # images with another decision by any rule
    labels: list[int]


def check_data(card: Card, groups: Sequence[Saved], evaluation: Evaluation) -> None:
    """Check that the file has the attacked images of every id and seed of the run, inside the threat model's ball.

    Raises ValueError in one line.
    """
    subset = evaluation.subset
    seeds, wanted = sorted({group.seed for group in groups}), sorted(evaluation.seeds)
    if seeds != wanted or card["seeds"] != wanted:
        got = seeds if seeds != wanted else card["seeds"]
        raise ValueError(f"need the seeds {_listed(wanted)}, got {_listed(got)}: every seed of the protocol counts")
    order = subset.ids.argsort()
    ids, labels, x = subset.ids[order].tolist(), subset.y[order].tolist(), subset.x[order]
    for group in groups:
        where = f"{group.arm}, seed {group.seed}"
        if [row["id"] for row in group.rows] != ids:
            other = sorted({row["id"] for row in group.rows} - set(ids)) or ["too few"]
            raise ValueError(f"need the {len(ids)} ids of the dataset's subset, got {other[0]} ({where})")
        if [row["label"] for row in group.rows] != labels:
            raise ValueError(f"need the dataset's labels, got others ({where})")
        counts = {len(row["adv"]) for row in group.rows} | {len(row["clean"]) for row in group.rows if row["clean"]}
        if counts != {evaluation.votes}:
            raise ValueError(f"need {evaluation.votes} samples of each image, got {_listed(sorted(counts))} ({where})")
        _check_images(group.x_adv, x, evaluation, where)


def _check_images(x_adv: Tensor, x: Tensor, evaluation: Evaluation, where: str) -> None:
    """Raises ValueError for images of another shape, outside [0,1], or outside the ball of a norm."""
    if x_adv.shape != x.shape or not x_adv.is_floating_point():
        raise ValueError(f"need attacked images {_listed(x.shape)}, got {_listed(x_adv.shape)} ({where})")
    if not bool(((x_adv >= 0) & (x_adv <= 1)).all()):  # NaN compares false
        raise ValueError(f"need attacked images in [0,1], got values outside ({where})")
    threat = evaluation.threat
    farthest = float(threat.distance(x_adv, x).max()) if threat.norm in BALLS else 0.0
    if farthest > threat.eps * (1 + 1e-5) + SLACK:
        raise ValueError(
            f"need attacked images within {threat.norm} {threat.eps:.6g}, got one at {farthest:.6g} ({where})"
        )


def check_facts(card: Card, groups: Sequence[Saved], evaluation: Evaluation, caveats: Mapping[str, Any]) -> None:
    """Check that the numbers of the card are those of its file, and that it says what is attacked and scored.

    `caveats`: those of today's configuration. Raises ValueError in one line that names the first difference.
    """
    for name in TAKEN:
        for change in changes(card["caveats"].get(name), caveats[name], f"caveats.{name}"):
            raise ValueError(f"need {change.key} {change.reference} as the configuration gives it, got {change.value}")
    rows, judge = [dict(row) for group in groups for row in group.rows], evaluation.judge
    of_judge = (judge.rule, judge.draws, judge.screen) if judge else (None, 0, 0)
    figures = metrics.summarize(rows, evaluation.votes, *of_judge, evaluation.ties)
    told = {name: card[name] for name in ("config", "caveats", "seconds")} | {"audited": card["audit"]}
    again = card_from({**told, **figures}, rows, card["key"])
    for change in changes(_rounded(card), _rounded(again), ""):
        key = change.key.lstrip(".")
        if not any(key == name or key.startswith(f"{name}.") for name in UNSEEN):
            raise ValueError(
                f"need {key} {_short(change.reference)} as the images file gives it, got {_short(change.value)}"
            )
    failed = None if card["audit"] is None else card["audit"]["FAIL"] > 0
    if card["unreliable"] is not failed:
        raise ValueError(f"need unreliable {failed} as the audit says, got {card['unreliable']}")


def _rounded(value: Any) -> Any:
    """Plain data with floats to nine decimals, because another machine may sum in another order."""
    if isinstance(value, dict):
        return {key: _rounded(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(child) for child in value]
    return round(value, 9) if isinstance(value, float) else value


def scorings(
    groups: Sequence[Saved], evaluation: Evaluation, fresh: str | None, on_images: Callable[[int], None]
) -> Iterator[Scoring]:
    """Score the images of every condition again: with the run's own noise, or with that of the stage `fresh`."""
    x = evaluation.subset.x[evaluation.subset.ids.argsort()]
    for figure, arm, side, own in SCORED:
        stage = own if fresh is None else f"{fresh}-{arm}-{side}"
        stated, again, labels, other = [], [], [], 0
        for group in (group for group in groups if group.arm == arm):
            images = (group.x_adv.float() if side == "adv" else x).to(evaluation.device)
            ids, width = [row["id"] for row in group.rows], evaluation.lanes
            model = evaluation.arms[arm].scored
            votes, rng = evaluation.votes, evaluation.rng
            logits = fresh_samples(model, images, ids, group.seed, stage, votes, width, on_images, rng=rng)
            stated += [row[side] for row in group.rows]
            again += logits.argmax(dim=2).tolist()
            labels += [row["label"] for row in group.rows]
            other += sum(
                _decides_otherwise(row, one, side, evaluation.ties) for row, one in zip(group.rows, logits, strict=True)
            )
        yield Scoring(figure, stated, again, other, labels)


def _decides_otherwise(row: Row, logits: Tensor, side: str, ties: str) -> bool:
    decisions, _ = decided(logits, ties)
    return any(row[f"{side}_{rule}"] != found for rule, found in decisions.items())


def first_scoring(found: Scoring) -> str:
    """What the scoring with the run's own noise found of one condition, in words. Raises ValueError if it differs."""
    images = len(found.stated)
    pairs = list(zip(found.stated, found.again, strict=True))
    unanimous = all(len(set(classes)) == 1 for pair in pairs for classes in pair)
    unequal = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in pairs]
    differ, of, unit = (sum(unequal), sum(map(len, found.stated)), "samples")
    if unanimous:  # no noise is drawn, so that an image is one decision
        differ, of, unit = (sum(map(bool, unequal)), images, "images")
    for name, n, total in ((unit, differ, of), ("decisions", found.decided, images)):
        allowed = math.ceil(total / ROUNDING)
        if n > allowed:
            raise ValueError(
                f"first scoring, {found.figure}: need the stated classes from the run's own noise, got {n} of {total} "
                f"{name} with another (rounding explains {allowed})"
            )
    return f"{found.figure} {differ} of {of} {unit} differ"


def second_scoring(found: Scoring) -> str:
    """What the scoring with fresh noise found of one condition, in words.

    The test is exact, see `dp.statistics.rescoring.chance`: given how many samples of an attacked image are right in
    both scorings together, fresh noise alone divides them by a hypergeometric law, image by image. So the samples of an
    image are not taken for independent, and nothing is assumed about the chances of the images. Each of the conditions
    of `SCORED` is tested at `REFUSED` divided by their number (Bonferroni), so an honest entry fails in at most 1 % of
    all checks.

    Raises ValueError if chance does not explain the difference.
    """
    p, stated, again = compared(found)
    level = REFUSED / len(SCORED)
    if p <= level:
        raise ValueError(
            f"second scoring, {found.figure}: need {stated:.2f} % of right samples within chance of fresh noise, got "
            f"{again:.2f} % (p = {p:.1g}, need over {level:g})"
        )
    return f"{found.figure} {stated:.1f} and {again:.1f} % (p = {p:.2g})"


def compared(found: Scoring) -> tuple[float, float, float]:
    """The exact p-value, and the percentages of right samples as stated and as scored again."""
    samples = len(found.stated[0])
    counts = [
        torch.tensor([sum(c == label for c in classes) for classes, label in zip(side, found.labels, strict=True)])
        for side in (found.stated, found.again)
    ]
    first, second = (each.numpy() for each in counts)
    total = samples * len(first)
    return chance(first, second, samples), 100 * float(first.sum()) / total, 100 * float(second.sum()) / total


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(values: Any) -> str:
    return ", ".join(map(str, values))
