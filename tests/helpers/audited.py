"""Shared by the tests of the audit: subjects, sound and with planted faults."""

import dataclasses
from typing import Any, NamedTuple

import faults
import torch
from faults import EXACT, copied, planted

from dp.attacks.base import Attack
from dp.attacks.pgd_eot import PGD
from dp.audit.check import Finding, Subject
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.evaluation.caveats import Caveats
from dp.evaluation.evaluate import Arm, Evaluation
from dp.purifiers import none
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel
from tests.helpers.compose import setup

__all__ = ["EXACT", "copied", "planted"]
SMALL = ("purifier=diffpure", "purifier.steps=2", "protocol.images=4", "attack.iterations=5", "attack.eot=2")


def composed_subject(*overrides: str, quick: bool = True, images: int | None = None) -> Subject:
    """What `python run.py overrides...` would audit."""
    return faults.composed_subject(setup(*overrides), quick, images)


NONE = Caveats(
    gradients=EXACT,
    straight_through=False,
    differences=(),
    departures=(),
    scaled=(),
    short_steps=(),
    no_surrogate=False,
    masks_spared=(),
    criterion="the mean over",
    attack_samples=1,
    batch_bound=False,
    nfe=0,
    attack_nfe=0,
    facts=(),
)


def saying(subject: Subject, **facts: Any) -> Subject:
    """The subject whose run declares other caveats."""
    return dataclasses.replace(subject, caveats=dataclasses.replace(subject.caveats, **facts))


def made(
    net: torch.nn.Module, purify=none.purify, attack=None, threat=None, images: int = 4, side: int = 16
) -> Subject:
    """A defense made of these parts, on images in the middle of the box, all of class 0."""
    x = 0.5 + 0.02 * torch.randn(images, 1, side, side, generator=torch.Generator().manual_seed(0))
    subset = Subset(torch.arange(images), x, torch.zeros(images, dtype=torch.long))
    model = Defended(purify, None, Classifier(net), draws_per_call=4)
    arms = {"defended": Arm(model, model, attack or PGD(5, 1))}
    evaluation = Evaluation(subset, arms, threat or ThreatModel("linf", 0.1), [0], votes=3, lanes=4)
    return Subject(evaluation, subset, NONE, quick=True)


class Linear(torch.nn.Module):
    """Logits (w . x, -w . x, .3)."""

    def __init__(self, w: torch.Tensor):
        super().__init__()
        self.w = torch.nn.Parameter(w)

    def forward(self, x):
        score = (x * self.w).flatten(1).sum(1)
        return torch.stack([score, -score, 0 * score + 0.3], dim=1)


def weights(side: int = 16) -> torch.Tensor:
    return torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(1))


def findings_of(subject: Subject, checks) -> dict[str, Finding]:
    return {found.check: found for found in (check(subject) for check in checks)}


class State(NamedTuple):
    x_adv: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Fixed(Attack):
    """Returns the clean image moved by `by`, whatever the threat model says."""

    by: float

    @property
    def steps(self):
        return 1

    @property
    def samples(self):
        return 1

    @property
    def select(self):
        return "last"

    def says(self, through):
        return "moves"

    def start(self, model, x, y, threat, rng):
        return State(x)

    def step(self, model, state, x, y, threat, rng):
        return State(x + self.by)


class Leaky(torch.nn.Module):
    """A network that adds noise from a generator of its own."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x, label):
        self.calls += 1
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(self.calls))
        return self.net(x, label) * (1 + 0.01 * noise.to(x))
