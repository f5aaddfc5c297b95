"""Attacks on the audit's few images, by the harness itself: the run's own, recorded, and others in its place."""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dp.attacks.base import Attack
from dp.attacks.wrapper import Wrapped
from dp.audit.check import VERDICTS, Subject
from dp.defense.defended import Defended
from dp.evaluation.evaluate import Arm, null_control
from dp.evaluation.rows import Group, Unit
from dp.rng import Streams
from dp.statistics.intervals import mcnemar, paired
from dp.threat_models.ball import BALLS, SLACK, ThreatModel

ROUNDING = 10 * SLACK  # of a state
LEVEL = 0.05  # of tests, shared among the comparisons of a check
QUICK = {"iterations": 5, "eot": 4}  # at most, in the small audit


@dataclass
class AttackLog:
    """What was recorded of the run's own attack."""

    box: int = 0  # states of an image outside [0,1]
    ball: int = 0  # ... farther from it than eps, in norms that the image alone tells
    moved: float = 0.0  # farthest that the threat model moved a pixel of a state's x_adv
    not_finite: int = 0  # states with NaN or infinity
    used: set[bytes] = field(default_factory=set)  # keys of the noise that the attack or the judge used
    scored: set[bytes] = field(default_factory=set)  # keys of the noise that scored
    calls: list[set[bytes]] = field(default_factory=list)  # keys by call of the scored defense, in order


@dataclass(frozen=True)
class Followed(Wrapped):
    """`attack`, whose every state is told to `see(state, x, threat)`."""

    see: Callable[[Any, Tensor, ThreatModel], None]

    def start(self, model: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        state = self.attack.start(model, x, y, threat, rng)
        self.see(state, x, threat)
        return state

    def step(self, model: Any, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        state = self.attack.step(model, state, x, y, threat, rng)
        self.see(state, x, threat)
        return state


def watched(model: Defended, see: Callable[[Streams, Tensor], None]) -> Defended:
    """The same defense, of the same class, whose every purification, in any gradient mode, is told to
    `see(noise, x_hat)`.
    """
    twin = copy.copy(model)
    twin.on_purified = see
    return twin


def small(subject: Subject) -> Attack:
    """The run's attack; in the small audit with no more than `QUICK` iterations and samples."""
    attack = subject.arm.attack
    if not subject.quick:
        return attack
    return attack.with_budget(**{key: lambda n, most=most: min(n, most) for key, most in QUICK.items()})


def own(subject: Subject) -> tuple[Group, AttackLog]:
    """The run's own attack (`small`) on the images under its first seed: in full, the attacked images and rows are
    those of the run, up to the rounding of another batch size.
    """
    if "own" not in subject.memo:
        log, arm = AttackLog(), subject.arm

        def state(state: Any, x: Tensor, threat: ThreatModel) -> None:
            if not bool(torch.isfinite(state.x_adv).all()):
                log.not_finite += 1
                return
            raw = state.x_adv.detach()
            log.box += int((raw - raw.clamp(0, 1)).flatten(1).abs().amax(dim=1).gt(ROUNDING).sum())
            if threat.norm in BALLS:
                log.ball += int((threat.distance(raw, x) > threat.eps + ROUNDING).sum())
            off = threat.admit(state, x)[0] - raw
            log.moved = max(log.moved, float(off.abs().max()))

        attacked = watched(arm.attacked, lambda rng, x_hat: log.used.update(rng.keys if rng.used else ()))
        scored = watched(arm.scored, lambda rng, x_hat: log.calls.append({*rng.keys} if rng.used else set()))
        twins: Any = Arm(attacked, scored, Followed(small(subject), state))
        group = _run(subject, twins)
        scoring = -(-subject.evaluation.votes // scored.draws_per_call)  # calls of one scoring; the judge's come first
        log.scored = set().union(*log.calls[-scoring:])
        log.used |= set().union(*log.calls[: -2 * scoring])
        subject.memo["own"] = group, log
    return subject.memo["own"]


def other(subject: Subject, name: str, attack: Attack | None = None, **changes: Any) -> Group:
    """Another `attack` (None: the run's) in the run's place, under `changes` of the evaluation; once for each name."""
    if name not in subject.memo:
        arm = subject.arm._replace(attack=attack or subject.arm.attack)
        subject.memo[name] = _run(subject, arm, **changes)
    return subject.memo[name]


def noise(subject: Subject) -> Group:
    """The run's null control on the images."""
    if "null" not in subject.memo:
        arm = subject.evaluation.arms["null"]
        if subject.quick:
            arm = arm._replace(attack=null_control(small(subject), subject.evaluation.judge))
        subject.memo["null"] = _run(subject, arm, "null")
    return subject.memo["null"]


def _run(subject: Subject, arm: Arm, name: str = "defended", **changes: Any) -> Group:
    images = subject.images
    parts: dict[str, Any] = {"subset": images, "arms": {name: arm}, "lanes": len(images.ids), "window": 1}
    evaluation = dataclasses.replace(subject.evaluation, **{**parts, **changes})
    return evaluation.run(Unit(name, subject.seed, tuple(evaluation.subset.ids.tolist())))


def right(group: Group, side: str = "adv") -> np.ndarray:
    """(n,) share of right samples of each image; `side`: `adv` or `clean`."""
    return np.array([np.mean([c == row["label"] for c in row[side]]) for row in group.rows])


def decisions(group: Group, side: str = "adv") -> np.ndarray:
    """(n,) 0 or 1: whether the vote of each image is right."""
    return np.array([float(row[f"{side}_vote"] == row["label"]) for row in group.rows])


def above(first: Group, second: Group, comparisons: int = 1) -> tuple[str, float, float]:
    """Whether `second` leaves more accuracy than `first` on the same images: the verdict, the mean difference and the
    p of McNemar's test of the votes. WARN: the paired 95 % interval of the difference is above 0; FAIL: p is below the
    level over `comparisons` as well.
    """
    difference, low, _ = paired(right(first), right(second))
    votes = decisions(first), decisions(second)
    p = mcnemar(*votes)
    more = difference > 0 and votes[1].mean() > votes[0].mean()
    verdict = "FAIL" if more and p < LEVEL / comparisons else "WARN" if low > 0 else "PASS"
    return verdict, difference, p


def worst(verdicts: list[str]) -> str:
    """The gravest of these verdicts."""
    order = ("INFO", *[v for v in VERDICTS if v != "INFO"])
    return max(verdicts, key=order.index, default="PASS")


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
