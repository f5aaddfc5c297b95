"""Judging candidates while the attack runs: which images are lost, which point of an image is its worst so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dp.defense.defended import Defended, finite
from dp.objectives import margin
from dp.rng import Streams
from dp.statistics import metrics

RULES = ("any", "all", "vote", "mean_logits")


class Look(NamedTuple):
    """What a judge saw of a batch of candidates."""

    classes: Tensor  # (draws,B) predicted, by the screen's draws if there is one
    wrong: Tensor  # (B,) int64: draws that are wrong
    margin: Tensor  # (B,) mean margin over the draws
    lost: Tensor  # (B,) bool: by the rule


@dataclass(frozen=True)
class Judge:
    """Looks at every image's candidate before the first and after each `every` iterations, with `draws` of the scored
    defence.

    `rule`: an image is lost once `any` or `all` of a look's draws are wrong, or their plurality `vote`, or the class of
    their `mean_logits`. `screen` > 0: only if that many draws of their own say so first (Hill et al. 2021). `retire`: a
    lost image is attacked no further. `in_loop`: every look has fresh draws and being lost is the protocol's verdict,
    as in the papers that judge this way; otherwise all looks at an image share their draws, and fresh ones judge its
    worst point by them, or the one that the attack has chosen with draws of its own.
    """

    every: int
    draws: int
    rule: str
    screen: int = 0
    retire: bool = True
    in_loop: bool = False

    def __post_init__(self):
        if min(self.every, self.draws) < 1 or self.screen < 0 or self.rule not in RULES:
            found = f"{self.every}, {self.draws}, {self.screen}, {self.rule!r}"
            raise ValueError(f"need every, draws >= 1, screen >= 0 and rule among {', '.join(RULES)}, got {found}")

    def look(self, model: Defended, x_adv: Tensor, y: Tensor, rng: Streams, at: Sequence[int], ties: str) -> Look:
        """`at`: iterations done, by lane; `ties`: see `metrics.vote`."""
        rng, labels = rng.draw([1 + i for i in at] if self.in_loop else 0), y.cpu()
        with torch.no_grad():
            logits = finite(model.logits(x_adv, rng.draw(0), self.screen or self.draws)).cpu()  # (draws,B,K)
            lost = self._lost(logits, labels, ties)
            if self.screen and bool(lost.any()):
                few = lost.nonzero()[:, 0].tolist()
                again = model.logits_of([(0, b) for b in few], [x_adv], rng.draw(1), self.draws).cpu()
                lost[few] = self._lost(again, labels[few], ties)
        classes = logits.argmax(dim=2)
        margins = torch.stack([margin(one, labels) for one in logits]).mean(dim=0)
        return Look(classes, (classes != labels).sum(dim=0), margins, lost)

    def _lost(self, logits: Tensor, y: Tensor, ties: str) -> Tensor:
        wrong = logits.argmax(dim=2) != y
        if self.rule in ("any", "all"):
            return wrong.any(dim=0) if self.rule == "any" else wrong.all(dim=0)
        if self.rule == "mean_logits":
            return logits.mean(dim=0).argmax(dim=1) != y
        votes = [metrics.vote(one, ties)[0] for one in np.asarray(logits.transpose(0, 1))]
        return torch.tensor(votes) != y
