"""Rank defenses by their honest robustness in the worst case. Pure functions of cards."""

import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dp.output.card import Card
from dp.output.card_text import name_of
from dp.runs.keys import digest_of
from dp.statistics.intervals import paired
from dp.threat_models.ball import parse_eps

RULE = "average"  # the expected accuracy of one sample: the same quantity for every protocol and number of samples
PARTS = ("classifier", "denoiser", "purifier")  # what makes up a defense
FEW = 2  # images in common, at least, for an interval of the difference


class Ranked(NamedTuple):
    """A defense in a ranking, by the entry of its strongest attack.

    `rank`: 1 + the number of defenses that are better beyond chance. `ties`: the names of those that are not
    distinguishable from it. `others`: its further entries, the strongest attack first.
    """

    rank: int
    name: str
    card: Card
    ties: list[str]
    others: list[Card]


def boards(cards: Sequence[Card]) -> dict[tuple[str, str, float], list[Card]]:
    """The cards of each board, by dataset, threat model and radius: only their numbers can be compared."""
    found: dict[tuple[str, str, float], list[Card]] = {}
    for card in cards:
        threat, eps = str(card["config"]["choices"]["threat_model"]), card["attacked"]["eps"]
        found.setdefault((card["dataset"], threat, parse_eps(eps)), []).append(card)
    return dict(sorted(found.items()))


def ranking(cards: Sequence[Card]) -> list[Ranked]:
    """The defenses of one board, the most robust first.

    Of a defense the entry counts whose attack leaves the least on the images that all of its entries have, because
    every attack within the radius is a proof of what is left at most, also one whose audit fails. Two defenses are
    distinguishable if the 95 % interval of the paired difference over their common images does not hold 0. The
    intervals are not corrected for the number of pairs.
    """
    groups: dict[str, list[Card]] = {}
    for card in sorted(cards, key=lambda card: card["key"]):
        groups.setdefault(digest_of({part: card["config"][part] for part in PARTS}), []).append(card)
    ordered = [_strongest_first(group) for group in groups.values()]
    names = _names([group[0] for group in ordered])
    table = sorted(zip(names, ordered, strict=True), key=lambda pair: (-robust(pair[1][0]), pair[0]))
    ranked = []
    for name, group in table:
        apart = {other: _apart(group[0], rival[0]) for other, rival in table if other != name}
        better = sum(sign > 0 for sign in apart.values())
        ties = [other for other, sign in apart.items() if sign == 0]
        ranked.append(Ranked(1 + better, name, group[0], ties, group[1:]))
    return sorted(ranked, key=lambda one: (one.rank, -robust(one.card), one.name))


def robust(card: Card) -> float:
    """The ranked figure, in percent: by fresh samples, never by those that an attack has seen."""
    return card["figures"]["robust"][RULE]["value"]


def scores(card: Card) -> dict[int, float]:
    """The share of right samples of each attacked image, over all seeds, by its id."""
    images = card["images"]
    return {i: n / images["samples"] for i, n in zip(images["ids"], images["right"], strict=True)}


def _strongest_first(group: Sequence[Card]) -> list[Card]:
    """The entries of one defense, by what is left on the images that all of them have."""
    common = set.intersection(*(set(card["images"]["ids"]) for card in group))

    def left(card: Card) -> float:
        own = scores(card)
        return float(np.mean([own[i] for i in sorted(common)])) if common else robust(card) / 100

    return sorted(group, key=lambda card: (left(card), card["key"]))


def _apart(card: Card, rival: Card) -> int:
    """1 if the rival is more robust beyond chance, -1 if it is less, 0 if they are not distinguishable."""
    own, its = scores(card), scores(rival)
    common = sorted(own.keys() & its.keys())
    if len(common) < FEW:
        return 0
    _, low, high = paired(*(np.array([side[i] for i in common]) for side in (own, its)))
    return int(low > 0) - int(high < 0)


def _names(cards: Sequence[Card]) -> list[str]:
    """A name for each defense: the purifier, networks that are not the dataset's own, and values that were changed."""
    names = [_name(card) for card in cards]
    return [
        name if names.count(name) == 1 else f"{name} ({card['key'][-10:]})"
        for name, card in zip(names, cards, strict=True)
    ]


def _name(card: Card) -> str:
    scored: Mapping = card["scored"]
    purifier = scored["purifier"]
    words = ["no purifier" if purifier["name"] == "none" else name_of(purifier)]
    own = (card["dataset"], card["config"]["choices"]["dataset"], "none", None)
    words += [f"{group} {scored[group]}" for group in ("classifier", "denoiser") if scored[group] not in own]
    changed = shlex.split(card["command"] or "")
    words += [word for word in changed if word.split(".")[0] in PARTS and "." in word.partition("=")[0]]
    return ", ".join(words)
