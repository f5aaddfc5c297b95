"""What an attack asks of a defence: its parts that take gradients, and the questions of one of their steps."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dp.attacks import Along, Attack, Model, is_batch_bound, newest
from dp.attacks.objectives import Loss, cross_entropy
from dp.attacks.through import Through
from dp.attacks.union import Union
from dp.audit import Finding, Subject
from dp.datasets import Subset
from dp.defense import Defended
from dp.rng import Streams
from dp.threat import ThreatModel

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
    return list(_parts(subject.arm.attack, "", (), subject.arm.attacked))


def _parts(attack: Attack, name: str, views: tuple[str, ...], model: Defended) -> Iterator[Part]:
    if isinstance(attack, Union):
        for key, part in attack.attacks.items():
            yield from _parts(part, key, views, model)
    elif isinstance(attack, Through):
        more = () if attack.grad == "full" else (attack.grad,)
        yield from _parts(attack.attack, name, (*views, *more), model.view(attack.grad))
    elif attack.steps > 0 and getattr(attack, "grad", "full") != "values" and not is_batch_bound(attack):
        yield Part(name or type(attack).__name__, attack, views, model)


def one_step(part: Part, images: Subset, threat: ThreatModel, rng: Streams) -> tuple[Asked | None, Tensor]:
    """The last gradient that the part's first step asks for, if any, and where the step leads, (B,C,H,W)."""
    model = Watched(part.model)
    state = part.attack.start(model, images.x, images.y, threat, rng.draw(0))
    model.log.clear()
    state = part.attack.step(model, state, images.x, images.y, threat, rng.draw(1))
    return model.log[-1] if model.log else None, newest(part.attack, state).x_adv


def main(asking: Sequence[Part]) -> Part:
    """The part with most draws among those on the attacked defence itself, or, if none is, among all."""
    return max([part for part in asking if not part.views] or asking, key=lambda part: part.attack.eot)


def seen(part: Part, asked: Asked) -> Defended:
    """The defence that the question was put to."""
    return functools.reduce(Defended.view, asked.views, part.model)


def led(subject: Subject, name: str) -> Defended:
    """The defence that a claimed gradient is taken of: `exact` and `approximate` are of `Arm.attacked` itself, others
    of the named views.
    """
    own = (subject.evaluation.threat.grad, "exact", "approximate", "full")
    return functools.reduce(Defended.view, (v for v in name.split("+") if v not in own), subject.arm.attacked)


def claimed(subject: Subject) -> list[str]:
    """The gradients that a run says it takes, without `values`, which is none."""
    return [name for name in (n.strip() for n in subject.claims.split(",")) if name != "values"]


def some(images: Subset, count: int) -> Subset:
    return images.select(slice(0, count))


def streams(subject: Subject, images: Subset, stage: str) -> Streams:
    """Noise of the audit's own."""
    return Streams(images.ids, subject.seed, f"audit-{stage}")


def reaches(model: Defended, images: Subset, rng: Streams) -> bool:
    """Whether the defence's logits hang on the image as far as autograd knows; where not, it answers with an error."""
    leaf = images.x[:1].detach().requires_grad_()
    logits = model(leaf, rng.select([0]))
    if not logits.requires_grad:
        return False
    return torch.autograd.grad(logits.sum(), leaf, allow_unused=True)[0] is not None


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B,) float64 between images of (B,...), 0 where one of them is zero."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=tiny)


def not_applicable(name: str, why: str) -> Finding:
    return Finding(name, f"does not apply: {why}", "-", "INFO", "-", 0.0)


@dataclass(frozen=True)
class Check:
    """A check under the `name` that its findings bear. It is timed, and what it `needs` is seen to: an attack that asks
    for a `gradient`, any `attack`, or `nothing`. Without it the check does not apply; where the attack asks for a
    gradient and there is none, both kinds fail.
    """

    name: str
    needs: str
    of: Callable[[Subject], Finding]

    def __call__(self, subject: Subject) -> Finding:
        began = time.perf_counter()
        return dataclasses.replace(self._unmet(subject) or self.of(subject), seconds=time.perf_counter() - began)

    def _unmet(self, subject: Subject) -> Finding | None:
        if self.needs == "nothing":
            return None
        if subject.arm.attack.steps == 0:
            return not_applicable(self.name, "there is no attack")
        if self.needs == "gradient" and not claimed(subject):
            return not_applicable(self.name, "the attack asks for no gradient")
        lost = ", ".join(unreachable(subject))
        return Finding(self.name, f"no gradient: {lost} is cut off", "one", "FAIL", "1 image", 0.0) if lost else None


def audited(name: str, needs: str = "gradient") -> Callable[[Callable[[Subject], Finding]], Check]:
    """Makes a `Check` of a function."""
    return lambda check: Check(name, needs, check)


def unreachable(subject: Subject) -> list[str]:
    """The claimed gradients that do not reach the image; found once."""
    if subject.arm.attack.steps == 0:
        return []
    if "unreachable" not in subject.memo:
        one = some(subject.images, 1)
        subject.memo["unreachable"] = [
            name for name in claimed(subject) if not reaches(led(subject, name), one, streams(subject, one, "reach"))
        ]
    return subject.memo["unreachable"]


def plural(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
