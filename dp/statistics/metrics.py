"""From rows to figures: accuracies by decision rule, votes, intervals. Pure functions."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dp.statistics.curves import success_histogram, vote_curve, worst_curve
from dp.statistics.intervals import interval

TIES = ("softmax", "lowest")
# Decision rules: the score of image j in [0,1] from the class k[j,r] and the logits z[j,r,:] of its R samples, where
# c[j,r] is 1 if k[j,r] is the label y[j] and 0 if not; and what the accuracy, the mean score over images, says.
RULES = {
    "single": ("`c[j,1]`", "one sample decides: the first"),
    "average": ("`(1/R) sum_r c[j,r]`", "the expected value of `single`, with less noise"),
    "vote": (
        "1 if `argmax_k #{r : k[j,r] = k}` is `y[j]`",
        "the plurality of the samples decides; ties by `protocol.ties`",
    ),
    "mean_logits": ("1 if `argmax_k (1/R) sum_r z[j,r,k]` is `y[j]`", "the mean logits decide"),
    "mean_softmax": ("1 if `argmax_k (1/R) sum_r softmax(z[j,r])_k` is `y[j]`", "the mean probabilities decide"),
    "worst": ("`prod_r c[j,r]`", "right only if all R samples are right"),
}


def vote(logits: np.ndarray, ties: str = "softmax") -> tuple[int, bool]:
    """The class that most samples predict, from (samples,K) logits, and whether there was a tie.

    `ties`: `softmax` gives a tie to the tied class with the largest summed softmax, `lowest` to the lowest class, as
    the released code does.
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
    """Figures in percent of one condition and decision rule, over all seeds.

    `verdicts`: {seed: score in [0,1] per image}, images in the same order for every seed. `draws`: samples per
    decision.
    `value`: mean over seeds and images. `seed_std`: sample standard deviation of the values per seed, None for one
    seed; it is the noise of attack and defense on the same images and no interval. `wilson95`: the interval for n
    images, each with its mean over seeds, see `interval`. `n` counts images, never images x seeds.
    """
    per_seed = [float(np.mean(v)) for v in verdicts.values()]
    scores = np.mean([list(v) for v in verdicts.values()], axis=0)
    return {
        "value": 100 * float(np.mean(per_seed)),
        "seed_std": 100 * float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None,
        "wilson95": [100 * end for end in interval(scores)],
        "n": len(scores),
        "draws": draws,
    }


def curve(scores: np.ndarray) -> dict:
    """`value`, `wilson95_low` and `wilson95_high` as lists over 1..R samples, in percent with two decimals.

    `scores`: (images,R), as `worst_curve` and `vote_curve` return them.
    """
    low, high = zip(*(interval(column) for column in scores.T), strict=True)
    figures = {"value": scores.mean(axis=0), "wilson95_low": np.array(low), "wilson95_high": np.array(high)}
    return {name: [round(100 * float(v), 2) for v in values] for name, values in figures.items()}


def curves(rows: Sequence[Mapping[str, Any]], side: str, ties: str) -> dict:
    """Curves over the number of samples, from the rows of one condition.

    `side`: the field of the rows with the predicted classes (clean or adv). Returns `worst` of M and `vote` of K as in
    `curve`, and `success` as in `success_histogram`.
    """
    by_seed = _by_seed(rows, lambda row: row[side])
    labels = np.array(next(iter(_by_seed(rows, lambda row: row["label"]).values())))
    classes = np.array(list(by_seed.values()))
    right = classes == labels[:, None]
    return {
        "worst": curve(worst_curve(right)),
        "vote": curve(vote_curve(classes, labels, ties)),
        "success": success_histogram(right),
    }


def score(row: Mapping[str, Any], side: str, rule: str) -> float:
    """Score in [0,1] of one image by a decision rule over its samples.

    `side`: the field of the row with the predicted classes: clean, adv, or seen (the in-loop evaluation's). `rule`: one
    of `RULES`.
    """
    right = [c == row["label"] for c in row[side]]
    if rule == "single":
        return float(right[0])
    if rule in ("average", "worst"):
        return sum(right) / len(right) if rule == "average" else float(all(right))
    return float(row[f"{side}_{rule}"] == row["label"])


def summarize(
    rows: Sequence[Mapping[str, Any]],
    votes: int,
    judged: str | None = None,
    judge_draws: int = 0,
    screen: int = 0,
    ties: str = "softmax",
) -> dict:
    """All figures of a run from its rows.

    Returns `standard`, `robust`, `undefended_standard`, `undefended` and `null` as {rule: `accuracy`}, and further
    `per_seed`, `curves` ({standard, robust, null: `curves`}) and `ties`, the number of tied votes. A condition without
    rows is left out.
    Rules: `single` is the first sample of an image, `average` the share of right samples, `vote` the plurality of the
    `votes` samples, `mean_logits` and `mean_softmax` the class of their mean, and `worst` asks that all be right.
    `judged`: the rule of the in-loop evaluation, if there was one, with `judge_draws` samples each time, of which
    `screen` are the first stage (0 without one). Then `seen` and `null_seen` hold what it found at each image's worst
    point: `average`, `worst`, and by its own rule the share of images that it never found broken. `ties`: how votes
    settled ties.
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
    by_draws: dict[str, dict] = {}
    for name, (arm, side) in columns.items():
        chosen = [row for row in rows if row["arm"] == arm]
        if not chosen:
            continue
        if arm != "undefended":
            by_draws[name] = curves(chosen, side, ties)
        for rule in RULES:
            verdicts = _by_seed(chosen, functools.partial(score, side=side, rule=rule))
            figures.setdefault(name, {})[rule] = accuracy(verdicts, draws=1 if rule == "single" else votes)
            for seed, scores in verdicts.items():
                per_seed.setdefault(seed, {}).setdefault(name, {})[rule] = 100 * float(np.mean(scores))
    if judged:
        figures |= _in_loop(rows, judged, judge_draws, screen)
    figures["curves"] = by_draws
    figures["per_seed"] = {str(seed): per_seed[seed] for seed in sorted(per_seed)}
    figures["ties"] = sum(row["ties"] for row in rows)
    return figures


def _in_loop(rows: Sequence[Mapping[str, Any]], judged: str, judge_draws: int, screen: int) -> dict:
    """`seen` and `null_seen` as {rule: `accuracy`} over the samples at each image's worst point."""
    figures = {}
    for name, arm in (("seen", "defended"), ("null_seen", "null")):
        chosen = [row for row in rows if row["arm"] == arm]
        if chosen and all(row["seen"] for row in chosen):
            rules = ("average", "worst")
            scores = {rule: _by_seed(chosen, functools.partial(score, side="seen", rule=rule)) for rule in rules}
            if judged in ("vote", "mean_logits"):
                scores[judged] = _by_seed(chosen, lambda row: float(row["lost_at"] is None))
            draws = {rule: screen or judge_draws for rule in rules} | {judged: judge_draws}
            figures[name] = {rule: accuracy(verdicts, draws[rule]) for rule, verdicts in scores.items()}
    return figures


def _by_seed(rows: Sequence[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], Any]) -> dict[int, list]:
    """{seed: one value per image}, images ordered by id."""
    ordered = sorted(rows, key=lambda row: (row["seed"], row["id"]))
    return {seed: [of(r) for r in ordered if r["seed"] == seed] for seed in sorted({r["seed"] for r in ordered})}
