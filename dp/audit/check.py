"""One check of the audit: what is audited, what a check needs, and what it found."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dp.attacks.base import VALUES
from dp.audit.stages import Stage
from dp.defense.defended import Defended
from dp.evaluation.caveats import Caveats, Difference, Modes, mode_name
from dp.evaluation.evaluate import Arm, Evaluation
from dp.rng import Streams
from dp.subset import Subset

VERDICTS = ("PASS", "WARN", "FAIL", "INFO")


@dataclass(frozen=True)
class Finding:
    """What one check found. PASS: as it should be; WARN: the number may be too high; FAIL: the number is wrong or the
    evaluation broken; INFO: there is nothing to hold it against.
    """

    check: str  # its name, one or two words, as in a table
    value: str  # what was measured
    threshold: str  # what it was held against
    verdict: str
    count: str  # images, samples, iterations that went into it
    seconds: float
    curve: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of a picture: `x` and a series per name


@dataclass(frozen=True)
class Subject:
    """What is audited: a run's evaluation and what is claimed of it.

    `images`: the few images that checks ask about, on the evaluation's device; `caveats`: what the run says of itself;
    `quick`: the quick audit before a long job; `memo`: what one check computed at length and another needs, by name; a
    changed copy starts without.
    """

    evaluation: Evaluation
    images: Subset
    caveats: Caveats
    quick: bool = False
    memo: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def arm(self) -> Arm:
        """The defended arm: attacked, scored, attack."""
        return self.evaluation.arms["defended"]

    @property
    def claims(self) -> tuple[Modes, ...]:
        """The gradient modes that the run says it takes."""
        return self.caveats.gradients

    @property
    def exact(self) -> bool:
        """False if an approximation inside the purification is part of its own gradient."""
        return not self.caveats.straight_through

    @property
    def declared(self) -> tuple[Difference, ...]:
        """The differences between the attacked and the scored purifier that the summary lists."""
        return self.caveats.differences

    @property
    def claimed(self) -> list[tuple[str, ...]]:
        """The claims without `values`, which is no gradient."""
        return [modes for modes in self.claims if modes != (VALUES,)]

    @property
    def claims_exact(self) -> bool:
        """True if some part of the attack is said to take the scored defense's own gradient."""
        return self.exact and () in self.claims

    def called(self, modes: tuple[str, ...]) -> str:
        """A claim in one word."""
        return mode_name(modes) if modes else "exact" if self.exact else "approximate"

    @property
    def claimed_names(self) -> str:
        """All claims, for people."""
        return ", ".join(sorted(map(self.called, self.claims)))

    @property
    def seed(self) -> int:
        return self.evaluation.seeds[0]


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
        if self.needs == "gradient" and not subject.claimed:
            return not_applicable(self.name, "the attack asks for no gradient")
        broken = ", ".join(map(subject.called, unreachable(subject)))
        return (
            Finding(self.name, f"no gradient: {broken} is cut off", "one", "FAIL", "1 image", 0.0) if broken else None
        )


def audited(name: str, needs: str = "gradient") -> Callable[[Callable[[Subject], Finding]], Check]:
    """Makes a `Check` of a function."""
    return lambda check: Check(name, needs, check)


def not_applicable(name: str, why: str) -> Finding:
    return Finding(name, f"does not apply: {why}", "-", "INFO", "-", 0.0)


def unreachable(subject: Subject) -> list[tuple[str, ...]]:
    """The claimed gradients that do not reach the image; found once."""
    if subject.arm.attack.steps == 0:
        return []
    if "unreachable" not in subject.memo:
        one = some(subject.images, 1)
        subject.memo["unreachable"] = [
            modes
            for modes in subject.claimed
            if not reaches(differentiated(subject, modes), one, streams(subject, one, Stage.REACH))
        ]
    return subject.memo["unreachable"]


def differentiated(subject: Subject, modes: Sequence[str]) -> Defended:
    """The defense that a claimed gradient is taken of. `Arm.attacked` has the threat model's gradient mode already."""
    others = [mode for mode in modes if mode != subject.evaluation.threat.grad]
    return subject.arm.attacked.gradient_modes(others)


def reaches(model: Defended, images: Subset, rng: Streams) -> bool:
    """Whether the defense's logits hang on the image as far as autograd knows; where not, it answers with an error."""
    leaf = images.x[:1].detach().requires_grad_()
    logits = model(leaf, rng.select([0]))
    if not logits.requires_grad:
        return False
    return torch.autograd.grad(logits.sum(), leaf, allow_unused=True)[0] is not None


def some(images: Subset, count: int) -> Subset:
    return images.select(slice(0, count))


def streams(subject: Subject, images: Subset, stage: Stage) -> Streams:
    """Noise of the audit's own."""
    return Streams(images.ids, subject.seed, stage)


def plural(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
