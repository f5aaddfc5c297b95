"""Shared by the tests of the audit: subjects, sound and with planted faults."""

import dataclasses
from typing import Any, NamedTuple

import torch

from dp.attacks.base import Attack
from dp.attacks.pgd_eot import PGD
from dp.audit.check import Finding, Subject
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.evaluation.caveats import Caveats
from dp.evaluation.evaluate import Arm, Evaluation
from dp.purifiers import none
from dp.runs.build import build
from dp.runs.caveats import caveats_of
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel
from tests.helpers.compose import setup

SMALL = ("purifier=diffpure", "purifier.steps=2", "protocol.images=4", "attack.iterations=5", "attack.eot=2")


def composed_subject(*overrides: str, quick: bool = True, images: int | None = None) -> Subject:
    """What `python run.py overrides...` would audit."""
    asked = setup(*overrides)
    evaluation = build(asked.config)
    return Subject(evaluation, evaluation.subset.select(slice(0, images)), caveats_of(asked, evaluation), quick)


EXACT = ((),)  # claims of an attack along the scored defense's own gradient
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


def planted(subject: Subject, claims: tuple[tuple[str, ...], ...] = (), arm: str = "defended", **changes) -> Subject:
    """The subject with other parts in one of its conditions, and no declaration of them; `both`: attacked and scored at
    once. The null control is scored by the same defense.
    """
    if "both" in changes:
        changes["attacked"] = changes["scored"] = changes.pop("both")
    arms = {**subject.evaluation.arms, arm: subject.evaluation.arms[arm]._replace(**changes)}
    if arm == "defended" and "scored" in changes and "null" in arms:
        arms["null"] = arms["null"]._replace(scored=changes["scored"])
    evaluation = dataclasses.replace(subject.evaluation, arms=arms)
    caveats = dataclasses.replace(subject.caveats, gradients=claims or subject.claims)
    return dataclasses.replace(subject, evaluation=evaluation, caveats=caveats)


def saying(subject: Subject, **facts: Any) -> Subject:
    """The subject whose run declares other caveats."""
    return dataclasses.replace(subject, caveats=dataclasses.replace(subject.caveats, **facts))


def copied(kind: type[Defended], model: Defended, **changes: Any) -> Defended:
    """The same defense as another class, some parts of it changed."""
    twin = kind(model.purifier, model.denoiser, model.classifier, model.draws_per_call, model.variants)
    for name, value in changes.items():
        setattr(twin, name, value)
    return twin


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
