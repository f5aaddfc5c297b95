"""Rows to figures: accuracies by decision rule, votes, intervals. Pure functions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Z95 = 1.959963984540054
TIES = ("softmax", "lowest")


def wilson(share: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval for a share in [0,1] of n independent images (Wilson 1927)."""
    if not 0 <= share <= 1 or n < 1:
        raise ValueError(f"need a share in [0, 1] of n >= 1 images, got share={share}, n={n}")
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return low, high


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


def accuracy(verdicts: Mapping[int, Sequence[bool]], draws: int) -> dict:
    """Figures of one arm and rule from {seed: verdict per image}: percent, over all seeds.

    `value`: mean over seeds and images; `seed_std`: sample standard deviation of the per-seed values (None for one
    seed), which is noise of attack and defence on the same images and no interval; `wilson95`: sampling error of n
    images; n counts images, never images x seeds.
    """
    per_seed = [float(np.mean(v)) for v in verdicts.values()]
    n = len(next(iter(verdicts.values())))
    value = float(np.mean(per_seed))
    low, high = wilson(value, n)
    return {
        "value": 100 * value,
        "seed_std": 100 * float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None,
        "wilson95": [100 * low, 100 * high],
        "n": n,
        "draws": draws,
    }


def summarise(rows: Sequence[Mapping[str, Any]], votes: int) -> dict:
    """`standard`, `robust`, `undefended`, `null` as {single, vote} of `accuracy`, plus `per_seed`, `ties` and
    `undefended_standard`.

    `single` is the first draw of an image; `vote` the plurality of its `votes` draws. An arm without rows is left out.
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
    for name, (arm, field) in columns.items():
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        seeds = sorted({row["seed"] for row in mine})
        rules = {
            "single": {s: [r[field][0] == r["label"] for r in mine if r["seed"] == s] for s in seeds},
            "vote": {s: [r[f"{field}_vote"] == r["label"] for r in mine if r["seed"] == s] for s in seeds},
        }
        figures[name] = {rule: accuracy(v, draws=1 if rule == "single" else votes) for rule, v in rules.items()}
        for seed in seeds:
            cell = {rule: 100 * float(np.mean(v[seed])) for rule, v in rules.items()}
            per_seed.setdefault(seed, {})[name] = cell
    figures["per_seed"] = {str(seed): per_seed[seed] for seed in sorted(per_seed)}
    figures["ties"] = sum(row["ties"] for row in rows)
    return figures
