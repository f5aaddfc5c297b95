"""Probes: the parts of an attack that take gradients, and the gradient that one of their steps takes."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from dp.attacks.base import VALUES, Attack
from dp.audit.check import Subject
from dp.defense.defended import Defended
from dp.defense.interface import Defense
from dp.defense.wrapper import Query, Wrapped
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel

SMALLEST = 1e-30  # a length below it counts as zero


class Probe(NamedTuple):
    """A part of an attack that takes gradients, and the defense that it is given."""

    name: str
    attack: Attack
    modes: tuple[str, ...]  # gradient modes between `Arm.attacked` and `model`
    model: Defended


class Recorder(Wrapped):
    """A defense that records every gradient that is taken of it, in `log`. Its gradient modes share this list."""

    def __init__(self, model: Defense, modes: tuple[str, ...] = (), log: list[Query] | None = None):
        super().__init__(model)
        self.modes = modes
        self.log: list[Query] = [] if log is None else log

    def around(self, model: Defense, name: str) -> "Recorder":
        """A recorder of the gradient mode `name`, with the same list."""
        return Recorder(model, (*self.modes, name), self.log)

    def answered(self, query: Query) -> None:
        """Record a query, with the gradient modes of this defense."""
        self.log.append(query._replace(modes=self.modes))


def gradient_probes(subject: Subject) -> list[Probe]:
    """The parts of the attack that take gradients. A package's attack is left out, because it runs as one step."""
    return [
        Probe(name or type(attack).__name__, attack, modes, subject.arm.attacked.gradient_modes(modes))
        for name, attack, modes in subject.arm.attack.parts()
        if attack.steps > 0 and attack.gradient != VALUES and not attack.batch_bound
    ]


def one_step(probe: Probe, images: Subset, threat: ThreatModel, rng: Streams) -> tuple[Query | None, Tensor]:
    """The last gradient in the first step of a probe, or None, and the point after this step, (B,C,H,W)."""
    model = Recorder(probe.model)
    state = probe.attack.start(model, images.x, images.y, threat, rng.draw(0))
    model.log.clear()
    state = probe.attack.step(model, state, images.x, images.y, threat, rng.draw(1))
    return model.log[-1] if model.log else None, probe.attack.current(state).x_adv


def main(probes: Sequence[Probe]) -> Probe:
    """The probe with the most samples, among those that differentiate the attacked defense itself if there are any."""
    return max([probe for probe in probes if not probe.modes] or probes, key=lambda probe: probe.attack.samples)


def queried(probe: Probe, query: Query) -> Defended:
    """The defense that answered the query, in its gradient mode."""
    return probe.model.gradient_modes(query.modes)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of each pair of images, (B,) float64, for a and b of shape (B,...). It is 0 if an image is zero."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=SMALLEST)
