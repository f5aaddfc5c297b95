"""What an attack asks of a defense: its parts that take gradients, and the queries of one of their steps."""

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

SMALLEST = 1e-30  # below it a length counts as zero


class Probe(NamedTuple):
    """A part of an attack that takes gradients, and the defense that it is given."""

    name: str
    attack: Attack
    modes: tuple[str, ...]  # gradient modes between `Arm.attacked` and `model`
    model: Defended


class Recorder(Wrapped):
    """A defense that notes every gradient it is asked for; its gradient modes note in the same list."""

    def __init__(self, model: Defense, modes: tuple[str, ...] = (), log: list[Query] | None = None):
        super().__init__(model)
        self.modes = modes
        self.log: list[Query] = [] if log is None else log

    def around(self, model: Defense, name: str) -> "Recorder":
        return Recorder(model, (*self.modes, name), self.log)

    def answered(self, query: Query) -> None:
        self.log.append(query._replace(modes=self.modes))


def gradient_probes(subject: Subject) -> list[Probe]:
    """The parts of the attack that take gradients; a package, which asks in its own ways, is none."""
    return [
        Probe(name or type(attack).__name__, attack, modes, subject.arm.attacked.gradient_modes(modes))
        for name, attack, modes in subject.arm.attack.parts()
        if attack.steps > 0 and attack.gradient != VALUES and not attack.batch_bound
    ]


def one_step(probe: Probe, images: Subset, threat: ThreatModel, rng: Streams) -> tuple[Query | None, Tensor]:
    """The last gradient that the probe's first step asks for, if any, and where the step leads, (B,C,H,W)."""
    model = Recorder(probe.model)
    state = probe.attack.start(model, images.x, images.y, threat, rng.draw(0))
    model.log.clear()
    state = probe.attack.step(model, state, images.x, images.y, threat, rng.draw(1))
    return model.log[-1] if model.log else None, probe.attack.current(state).x_adv


def main(probes: Sequence[Probe]) -> Probe:
    """The probe with most samples among those on the attacked defense itself, or, if none is, among all."""
    return max([probe for probe in probes if not probe.modes] or probes, key=lambda probe: probe.attack.samples)


def queried(probe: Probe, query: Query) -> Defended:
    """The defense that the query was put to."""
    return probe.model.gradient_modes(query.modes)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B,) float64 between images of (B,...), 0 where one of them is zero."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=SMALLEST)
