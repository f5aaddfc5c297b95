"""In-loop evaluations: which images are broken while the attack runs, and which point of an image is its worst."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dp.defense.defended import Defended, finite
from dp.objectives import margin
from dp.rng import Streams
from dp.statistics import metrics

RULES = ("any", "all", "vote", "mean_logits")


class Evaluations(IntEnum):
    """Sub-streams of the judge's noise: one that all evaluations of an image share, or one for each."""

    SHARED = 0
    OWN = 1  # before the first iteration; those after it follow


class Sub(IntEnum):
    """Sub-streams of one evaluation."""

    FIRST = 0  # the only stage, or the first of two
    SECOND = 1


class JudgeRecord(NamedTuple):
    """What a judge observes of a batch of points; R: samples of its first stage."""

    classes: Tensor  # (R,B) predicted
    wrong: Tensor  # (B,) int64: wrong predictions
    margin: Tensor  # (B,) mean margin
    broken: Tensor  # (B,) bool: by the rule


@dataclass(frozen=True)
class Judge:
    """Evaluates the current point of every image before the first and after each `every` iterations, with `draws`
    samples of the scored defense.

    `rule`: an image is broken if `any` or `all` of the samples are wrong, or their plurality `vote`, or the class of
    their `mean_logits`. `screen` > 0: two stages; so many samples of a first stage must say so before the `draws` of
    the second decide (Hill et al. 2021). `retire`: a broken image is dropped. `in_loop`: every evaluation has fresh
    samples, and being broken is the protocol's decision, as in the papers that judge this way. Otherwise all
    evaluations of an image share their samples, and fresh ones score the point that is worst by them, or the one that
    the attack has chosen with samples of its own.
    """

    every: int
    draws: int
    rule: str
    screen: int = 0
    retire: bool = True
    in_loop: bool = False

    def __post_init__(self):
        if min(self.every, self.draws) < 1 or self.screen < 0 or self.rule not in RULES:
            given = f"{self.every}, {self.draws}, {self.screen}, {self.rule!r}"
            raise ValueError(f"need every, draws >= 1, screen >= 0 and rule among {', '.join(RULES)}, got {given}")

    def evaluate(
        self, model: Defended, x_adv: Tensor, y: Tensor, rng: Streams, steps: Sequence[int], ties: str
    ) -> JudgeRecord:
        """Of points x_adv (B,C,H,W) with labels y (B,). `steps`: iterations done, by slot; `ties`: see
        `metrics.vote`.
        """
        number = [Evaluations.OWN + i for i in steps] if self.in_loop else Evaluations.SHARED
        rng, labels = rng.draw(number), y.cpu()
        with torch.no_grad():
            logits = finite(model.logits(x_adv, rng.draw(Sub.FIRST), self.screen or self.draws)).cpu()  # (R,B,K)
            broken = self._broken(logits, labels, ties)
            if self.screen and bool(broken.any()):
                slots = broken.nonzero()[:, 0].tolist()
                second = model.logits_of([(0, b) for b in slots], [x_adv], rng.draw(Sub.SECOND), self.draws).cpu()
                broken[slots] = self._broken(second, labels[slots], ties)
        classes = logits.argmax(dim=2)
        margins = torch.stack([margin(one, labels) for one in logits]).mean(dim=0)
        return JudgeRecord(classes=classes, wrong=(classes != labels).sum(dim=0), margin=margins, broken=broken)

    def _broken(self, logits: Tensor, y: Tensor, ties: str) -> Tensor:
        """(B,) bool from logits (R,B,K), by the rule."""
        wrong = logits.argmax(dim=2) != y
        if self.rule in ("any", "all"):
            return wrong.any(dim=0) if self.rule == "any" else wrong.all(dim=0)
        if self.rule == "mean_logits":
            return logits.mean(dim=0).argmax(dim=1) != y
        votes = [metrics.vote(one, ties)[0] for one in np.asarray(logits.transpose(0, 1))]
        return torch.tensor(votes) != y
