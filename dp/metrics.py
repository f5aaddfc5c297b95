"""Rows to figures: accuracies by decision rule, votes, intervals. Pure functions."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dp.intervals import bootstrap, wilson

TIES = ("softmax", "lowest")
RULES = ("single", "average", "vote", "mean_logits", "mean_softmax", "worst")


def vote(logits: np.ndarray, ties: str = "softmax") -> tuple[int, bool]:
    """Plurality class of (draws,K) logits and whether the count alone left a tie.

    `ties`: `softmax` gives a tie to the tied class with the larger summed softmax, `lowest` to the lowest class (the
    official code).
    """
    assert ties in TIES, f"ties is one of {TIES}, got {ties!r}"
    counts = np.bincount(logits.argmax(axis=1), minlength=logits.shape[1])
    tied = np.flatnonzero(counts == counts.max())
    if len(tied) == 1 or ties == "lowest":
        return int(tied[0]), len(tied) > 1
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    total = (shifted / shifted.sum(axis=1, keepdims=True)).sum(axis=0)
    return int(tied[total[tied].argmax()]), True


def accuracy(verdicts: Mapping[int, Sequence[float]], draws: int) -> dict:
    """Figures of one arm and rule from {seed: score in [0,1] per image, in one order}: percent, over all seeds.

    `value`: mean over seeds and images; `seed_std`: sample standard deviation of the per-seed values (None for one
    seed), which is noise of attack and defence on the same images and no interval; `wilson95`: sampling error of n
    images; n counts images, never images x seeds. Fractional scores have `boot95` instead (see `bootstrap`), below 5
    and above 95 percent widened to cover Wilson's.
    """
    per_seed = [float(np.mean(v)) for v in verdicts.values()]
    n = len(next(iter(verdicts.values())))
    value = float(np.mean(per_seed))
    whole = all(score in (0, 1) for v in verdicts.values() for score in v)
    low, high = wilson(value, n)
    if not whole:
        ends = bootstrap(np.mean([list(v) for v in verdicts.values()], axis=0))
        if 0.05 <= value <= 0.95:
            low, high = ends
        else:  # a few scores that are not 0 or 1 tell the bootstrap too little
            low, high = min(low, ends[0]), max(high, ends[1])
    return {
        "value": 100 * value,
        "seed_std": 100 * float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None,
        "wilson95" if whole else "boot95": [100 * low, 100 * high],
        "n": n,
        "draws": draws,
    }


def score(row: Mapping[str, Any], side: str, rule: str) -> float:
    """How right one image is, in [0,1], by `rule` over the draws of `side` (`clean`, `adv`, or the judge's `seen`)."""
    right = [c == row["label"] for c in row[side]]
    if rule == "single":
        return float(right[0])
    if rule in ("average", "worst"):
        return sum(right) / len(right) if rule == "average" else float(all(right))
    return float(row[f"{side}_{rule}"] == row["label"])


def summarise(
    rows: Sequence[Mapping[str, Any]], votes: int, judged: str | None = None, judge_draws: int = 0, screen: int = 0
) -> dict:
    """`standard`, `robust`, `undefended`, `null` as {rule: `accuracy`}, plus `per_seed`, `ties`, `undefended_standard`.

    Rules: `single` is the first draw of an image; `average` the share of right draws; `vote` the plurality of the
    `votes` draws; `mean_logits`, `mean_softmax` the class of their mean; `worst`: right on all. `judged`: the rule by
    which a judge called images lost during the attack, with `judge_draws` a look; then `seen` and `null_seen` are what
    it saw at each image's worst point: `average`, `worst`, and by its own rule the share never lost; `screen`: draws
    that it asked first. An arm without rows is left out.
    """
    columns = {
        "standard": ("defended", "clean"),
        "robust": ("defended", "adv"),
        "undefended_standard": ("undefended", "clean"),
        "undefended": ("undefended", "adv"),
        "null": ("null", "adv"),
    }
    figures: dict = {}
    per_seed: dict[int, dict] = {}
    for name, (arm, side) in columns.items():
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        for rule in RULES:
            verdicts = _by_seed(mine, functools.partial(score, side=side, rule=rule))
            figures.setdefault(name, {})[rule] = accuracy(verdicts, draws=1 if rule == "single" else votes)
            for seed, scores in verdicts.items():
                per_seed.setdefault(seed, {}).setdefault(name, {})[rule] = 100 * float(np.mean(scores))
    for name, arm in (("seen", "defended"), ("null_seen", "null")):
        mine = [row for row in rows if row["arm"] == arm]
        if judged and mine and all(row["seen"] for row in mine):
            rules = ("average", "worst")
            scores = {rule: _by_seed(mine, functools.partial(score, side="seen", rule=rule)) for rule in rules}
            if judged in ("vote", "mean_logits"):
                scores[judged] = _by_seed(mine, lambda row: float(row["lost_at"] is None))
            draws = {rule: screen or judge_draws for rule in rules} | {judged: judge_draws}
            figures[name] = {rule: accuracy(verdicts, draws[rule]) for rule, verdicts in scores.items()}
    figures["per_seed"] = {str(seed): per_seed[seed] for seed in sorted(per_seed)}
    figures["ties"] = sum(row["ties"] for row in rows)
    return figures


def _by_seed(rows: Sequence[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], float]) -> dict[int, list[float]]:
    """{seed: a score per image}, images by id."""
    ordered = sorted(rows, key=lambda row: (row["seed"], row["id"]))
    return {seed: [of(r) for r in ordered if r["seed"] == seed] for seed in sorted({r["seed"] for r in ordered})}
