"""A check of the audit: its subject, what it needs, and its finding."""

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
    """The result of one check.

    Its status is PASS: as it should be; WARN: the number may be too high; FAIL: the number is wrong or the evaluation
    is broken; INFO: there is nothing to compare with, or the check does not apply.
    """

    check: str  # the name of the check
    value: str  # what was measured
    threshold: str  # what the value should be
    verdict: str  # the status
    count: str  # the images, samples and iterations that were used
    seconds: float
    curve: Mapping[str, Sequence[float]] = field(default_factory=dict)  # for a plot: `x`, and values by name


@dataclass(frozen=True)
class Subject:
    """The subject of an audit: the evaluation of a run and its caveats.

    `images`: the few images that the checks use, on the evaluation's device. `caveats`: what the run declares.
    `quick`: True for the quick audit before a long job. `memo`: results of one check that another needs, by name. A
    copy with `dataclasses.replace` has an empty memo.
    """

    evaluation: Evaluation
    images: Subset
    caveats: Caveats
    quick: bool = False
    memo: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def arm(self) -> Arm:
        """The defended condition: attacked, scored, attack."""
        return self.evaluation.arms["defended"]

    @property
    def claims(self) -> tuple[Modes, ...]:
        """The gradients that the run declares, as tuples of gradient modes."""
        return self.caveats.gradients

    @property
    def exact(self) -> bool:
        """False if the defense's own gradient contains an approximation (a straight-through clamp)."""
        return not self.caveats.straight_through

    @property
    def kinked(self) -> bool:
        """True if the yaml of the purifier declares that its derivative is not the slope everywhere."""
        return "derivative" in self.caveats.exceptions

    @property
    def declared(self) -> tuple[Difference, ...]:
        """The differences between the attacked and the scored purifier that the run declares."""
        return self.caveats.differences

    @property
    def claimed(self) -> list[tuple[str, ...]]:
        """The declared gradients without `values`, which is none."""
        return [modes for modes in self.claims if modes != (VALUES,)]

    @property
    def claims_exact(self) -> bool:
        """True if the run declares that a part of the attack takes the exact gradient of the scored defense."""
        return self.exact and not self.kinked and () in self.claims

    def called(self, modes: tuple[str, ...]) -> str:
        """The name of a declared gradient."""
        own = "approximate" if not self.exact else "exact but at kinks" if self.kinked else "exact"
        return mode_name(modes) if modes else own

    @property
    def claimed_names(self) -> str:
        """The names of all declared gradients, separated by commas."""
        return ", ".join(sorted(map(self.called, self.claims)))

    @property
    def seed(self) -> int:
        """The first seed of the run."""
        return self.evaluation.seeds[0]


@dataclass(frozen=True)
class Check:
    """A check of the audit. Call it with a subject; it returns its finding, with the seconds it took.

    `sees`: what the check sees, in a few words. `needs`: an attack that takes a `gradient`, any `attack`, or `nothing`.
    If the need is not met, the check does not apply. A check that needs a gradient or an attack fails if the attack
    takes a gradient that does not reach the image.
    """

    name: str
    sees: str
    needs: str
    of: Callable[[Subject], Finding]

    def __call__(self, subject: Subject) -> Finding:
        start_time = time.perf_counter()
        finding = self._unmet(subject) or self.of(subject)
        return dataclasses.replace(finding, seconds=time.perf_counter() - start_time)

    def _unmet(self, subject: Subject) -> Finding | None:
        if self.needs == "nothing":
            return None
        if subject.arm.attack.steps == 0:
            return not_applicable(self.name, "there is no attack")
        if self.needs == "gradient" and not subject.claimed:
            return not_applicable(self.name, "the attack takes no gradient")
        names = ", ".join(map(subject.called, unreachable(subject)))
        value = f"no gradient: {names} does not reach the image"
        return Finding(self.name, value, "a gradient", "FAIL", "1 image", 0.0) if names else None


def audited(name: str, sees: str, needs: str = "gradient") -> Callable[[Callable[[Subject], Finding]], Check]:
    """A decorator that makes a `Check` of a function. See `Check` for the arguments."""
    return lambda function: Check(name, sees, needs, function)


def not_applicable(name: str, why: str) -> Finding:
    """The finding of a check that does not apply. `why`: the reason, in words."""
    return Finding(name, f"does not apply: {why}", "-", "INFO", "-", 0.0)


def unreachable(subject: Subject) -> list[tuple[str, ...]]:
    """The declared gradients that do not reach the image. They are computed once."""
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
    """The defense whose gradient the attack takes in these modes.

    `Arm.attacked` already has the threat model's gradient mode.
    """
    others = [mode for mode in modes if mode != subject.evaluation.threat.grad]
    return subject.arm.attacked.gradient_modes(others)


def reaches(model: Defended, images: Subset, rng: Streams) -> bool:
    """True if autograd finds a path from the defense's logits back to the image."""
    leaf = images.x[:1].detach().requires_grad_()
    logits = model(leaf, rng.select([0]))
    if not logits.requires_grad:
        return False
    return torch.autograd.grad(logits.sum(), leaf, allow_unused=True)[0] is not None


def some(images: Subset, count: int) -> Subset:
    """The first `count` images."""
    return images.select(slice(0, count))


def streams(subject: Subject, images: Subset, stage: Stage) -> Streams:
    """The audit's own noise for one purpose, `stage`."""
    return Streams(images.ids, subject.seed, stage, subject.evaluation.rng)


def plural(count: int, what: str) -> str:
    """A count with its noun, such as `1 image` or `2 images`."""
    return f"{count} {what}" + ("" if count == 1 else "s")
