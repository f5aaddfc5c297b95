"""What an attack asks of a defence: its parts that take gradients, and the questions of one of their steps."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from dp.attacks.base import VALUES, Attack
from dp.audit.check import Subject
from dp.defense.defended import Defended
from dp.defense.interface import Along, Model
from dp.objectives import Loss, cross_entropy
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel

tiny = 1e-30  # below it a length counts as none


class Part(NamedTuple):
    """An attack that takes gradients, alone or inside others, and the defence as it sees it."""

    name: str
    attack: Attack
    views: tuple[str, ...]  # that lead from `Arm.attacked` to `model`
    model: Defended


class Asked(NamedTuple):
    """A question for a gradient, and the answer."""

    x: Tensor  # (B,C,H,W)
    grad: Tensor  # (B,C,H,W)
    draws: int | None  # None: of one chosen draw
    loss: Loss
    along: Along | None
    views: tuple[str, ...]


class Watched:
    """A model that passes everything on and notes every gradient it is asked for; views of it note in the same list."""

    def __init__(self, model: Model, views: tuple[str, ...] = (), log: list[Asked] | None = None):
        self.model, self.views = model, views
        self.log: list[Asked] = [] if log is None else log

    def view(self, grad: str) -> "Watched":
        return self if grad == "full" else Watched(self.model.view(grad), (*self.views, grad), self.log)

    def logits(self, x: Tensor, rng: Streams, draws: int) -> Tensor:
        return self.model.logits(x, rng, draws)

    def logits_of(self, asked: Sequence[tuple[int, int]], images: Sequence[Tensor], rng: Streams, draws: int) -> Tensor:
        return self.model.logits_of(asked, images, rng, draws)

    def loss(self, x: Tensor, y: Tensor, rng: Streams, draws: int, loss: Loss = cross_entropy) -> Tensor:
        return self.model.loss(x, y, rng, draws, loss)

    def loss_gradient(
        self, x: Tensor, y: Tensor, rng: Streams, draws: int, loss: Loss = cross_entropy, along: Along | None = None
    ) -> tuple[Tensor, Tensor]:
        values, grad = self.model.loss_gradient(x, y, rng, draws, loss, along)
        self.log.append(Asked(x, grad, draws, loss, along, self.views))
        return values, grad

    def purified(self, x: Tensor, rng: Streams, draws: int) -> Tensor:
        return self.model.purified(x, rng, draws)

    def pull_back(self, x: Tensor, rng: Streams, which: Sequence[int], direction: Tensor) -> Tensor:
        grad = self.model.pull_back(x, rng, which, direction)
        self.log.append(Asked(x, grad, None, cross_entropy, None, self.views))
        return grad


def parts(subject: Subject) -> list[Part]:
    """The parts of the attack that take gradients; a package, which asks in its own ways, is none."""
    return [
        Part(name or type(leaf).__name__, leaf, modes, functools.reduce(Defended.view, modes, subject.arm.attacked))
        for name, leaf, modes in subject.arm.attack.parts()
        if leaf.steps > 0 and leaf.gradient != VALUES and not leaf.batch_bound
    ]


def one_step(part: Part, images: Subset, threat: ThreatModel, rng: Streams) -> tuple[Asked | None, Tensor]:
    """The last gradient that the part's first step asks for, if any, and where the step leads, (B,C,H,W)."""
    model = Watched(part.model)
    state = part.attack.start(model, images.x, images.y, threat, rng.draw(0))
    model.log.clear()
    state = part.attack.step(model, state, images.x, images.y, threat, rng.draw(1))
    return model.log[-1] if model.log else None, part.attack.current(state).x_adv


def main(asking: Sequence[Part]) -> Part:
    """The part with most draws among those on the attacked defence itself, or, if none is, among all."""
    return max([part for part in asking if not part.views] or asking, key=lambda part: part.attack.samples)


def seen(part: Part, asked: Asked) -> Defended:
    """The defence that the question was put to."""
    return functools.reduce(Defended.view, asked.views, part.model)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B,) float64 between images of (B,...), 0 where one of them is zero."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=tiny)
