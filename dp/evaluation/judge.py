"""In-loop evaluation: it finds the images that an attack has broken so far, and the worst point of each image."""

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
    """Sub-streams of the noise of in-loop evaluations: one that all evaluations share, or one for each."""

    SHARED = 0
    OWN = 1  # of the evaluation before the first iteration; the numbers of later ones follow


class Sub(IntEnum):
    """Sub-streams of one evaluation."""

    FIRST = 0  # the first stage, or the only one
    SECOND = 1


class JudgeRecord(NamedTuple):
    """The result of an in-loop evaluation of B points with R first-stage samples."""

    classes: Tensor  # (R,B) int64: predicted classes
    wrong: Tensor  # (B,) int64: number of wrong predictions
    margin: Tensor  # (B,): mean margin
    broken: Tensor  # (B,) bool: broken by the rule


@dataclass(frozen=True)
class Judge:
    """The in-loop evaluation. It evaluates the current point of every image with `draws` samples of the scored defense.

    It does so before the first iteration and after every `every` iterations. `rule`: an image is broken if `any` or
    `all` of the samples are wrong, or if their plurality `vote` or the class of their `mean_logits` is wrong.
    `screen` > 0 adds a first stage: only if the rule holds for its `screen` samples do the `draws` samples of the
    second stage decide (Hill et al. 2021). `retire`: the attack on a broken image stops.

    `in_loop`: this evaluation is the protocol's decision, as in some papers, and each evaluation has fresh samples.
    Otherwise all evaluations of an image share their samples, and other, fresh samples score one point in the end: the
    worst one by these evaluations, or the one that the attack has chosen with selection samples of its own, if those
    are at least as many.

    Raises ValueError for counts out of range and for an unknown rule.
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

    def yields_to(self, selection_samples: int) -> bool:
        """True if the point that the attack has chosen with so many samples is scored, rather than the worst one."""
        return not self.in_loop and selection_samples >= (self.screen or self.draws)

    def evaluate(
        self, model: Defended, x_adv: Tensor, y: Tensor, rng: Streams, steps: Sequence[int], ties: str
    ) -> JudgeRecord:
        """Evaluate points x_adv (B,C,H,W) in [0,1] with labels y (B,).

        `steps`: the iterations done for each point; `ties`: how a tied vote is broken, see `metrics.vote`.
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
        """(B,) bool: True if the rule calls the point broken. `logits`: (R,B,K)."""
        wrong = logits.argmax(dim=2) != y
        if self.rule in ("any", "all"):
            return wrong.any(dim=0) if self.rule == "any" else wrong.all(dim=0)
        if self.rule == "mean_logits":
            return logits.mean(dim=0).argmax(dim=1) != y
        votes = [metrics.vote(one, ties)[0] for one in np.asarray(logits.transpose(0, 1))]
        return torch.tensor(votes) != y
