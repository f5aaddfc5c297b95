"""Attacks on the audit's few images: the run's own attack, recorded, and other attacks in its place."""

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
from dp.classifiers import RandomizedClassifier
from dp.defense.defended import Defended
from dp.evaluation.evaluate import Arm, null_control
from dp.evaluation.rows import Group, Unit
from dp.rng import Streams
from dp.statistics.intervals import mcnemar, paired
from dp.threat_models.ball import BALLS, SLACK, ThreatModel

ROUNDING = 10 * SLACK  # allowed rounding of a state
LEVEL = 0.05  # level of tests, divided by the number of comparisons of a check
QUICK = {"iterations": 5, "eot": 4}  # the largest budget in the quick audit


@dataclass
class AttackLog:
    """The record of the run's own attack."""

    box: int = 0  # number of states outside [0,1]
    ball: int = 0  # number of states farther from the image than eps, under l_p balls
    moved: float = 0.0  # the largest change of a pixel by the projection of a state
    not_finite: int = 0  # number of states with NaN or infinity
    used: set[bytes] = field(default_factory=set)  # keys of the noise of the attack and of in-loop evaluations
    scored: set[bytes] = field(default_factory=set)  # keys of the noise that scored
    calls: list[set[bytes]] = field(default_factory=list)  # keys of the noise in each call of the scored defense


@dataclass(frozen=True)
class Followed(Wrapped):
    """An attack that calls `see(state, x, threat)` with each of its states."""

    see: Callable[[Any, Tensor, ThreatModel], None]

    def start(self, model: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        """The attack's first state."""
        state = self.attack.start(model, x, y, threat, rng)
        self.see(state, x, threat)
        return state

    def step(self, model: Any, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        """The attack's next state."""
        state = self.attack.step(model, state, x, y, threat, rng)
        self.see(state, x, threat)
        return state


def watched(model: Defended, see: Callable[[Streams, Tensor], None]) -> Defended:
    """A copy of the defense that calls `see(noise, x_hat)` after every purification, in any gradient mode."""
    twin = copy.copy(model)
    twin.on_purified = see
    return twin


def draws(model: Defended, rng: Streams) -> bool:
    """True if the defense draws noise: its purifier did in this call, or its classifier will."""
    return rng.used or isinstance(model.classifier, RandomizedClassifier)


def drawn(model: Defended, rng: Streams) -> set[bytes]:
    """The keys of the noise that the defense draws in a call."""
    return {*rng.keys} if draws(model, rng) else set()


def small(subject: Subject, attack: Attack | None = None) -> Attack:
    """The run's attack, or another one. In the quick audit it has at most the iterations and samples of `QUICK`."""
    attack = attack or subject.arm.attack
    if not subject.quick:
        return attack
    return attack.with_budget(**{key: lambda n, most=most: min(n, most) for key, most in QUICK.items()})


def own(subject: Subject) -> tuple[Group, AttackLog]:
    """The results and the record of the run's own attack (see `small`), on the audit's images, under the first seed.

    In the whole audit, attacked images and rows equal those of the run, up to the rounding of another batch size.
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

        attacked = watched(arm.attacked, lambda rng, x_hat: log.used.update(drawn(arm.attacked, rng)))
        scored = watched(arm.scored, lambda rng, x_hat: log.calls.append(drawn(arm.scored, rng)))
        twins: Any = Arm(attacked, scored, Followed(small(subject), state))
        group = _run(subject, twins)
        batches = -(-len(subject.images.ids) // subject.evaluation.lanes)
        scoring = batches * -(-subject.evaluation.votes // scored.draws_per_call)  # calls; before are in-loop ones
        log.scored = set().union(*log.calls[-scoring:])
        log.used |= set().union(*log.calls[: -2 * scoring])
        subject.memo["own"] = group, log
    return subject.memo["own"]


def other(
    subject: Subject, name: str, attack: Attack | None = None, attacked: Defended | None = None, **changes: Any
) -> Group:
    """The results of another `attack` in place of the run's, or of the run's if it is None.

    `attacked`: the defense that it attacks, if not the run's; the same defense scores. `changes`: other fields of the
    evaluation. A result is computed once for each `name`.
    """
    if name not in subject.memo:
        arm = subject.arm._replace(attack=attack or subject.arm.attack, attacked=attacked or subject.arm.attacked)
        subject.memo[name] = _run(subject, arm, **changes)
    return subject.memo[name]


def noise(subject: Subject) -> Group:
    """The results of the run's null control on the audit's images."""
    if "null" not in subject.memo:
        arm = subject.evaluation.arms["null"]
        if subject.quick:
            arm = arm._replace(attack=null_control(small(subject), subject.evaluation.judge))
        subject.memo["null"] = _run(subject, arm, "null")
    return subject.memo["null"]


def _run(subject: Subject, arm: Arm, name: str = "defended", **changes: Any) -> Group:
    images = subject.images
    lanes = min(len(images.ids), subject.evaluation.lanes)  # calls are as wide as the run's
    parts: dict[str, Any] = {"subset": images, "arms": {name: arm}, "lanes": lanes, "window": len(images.ids)}
    evaluation = dataclasses.replace(subject.evaluation, **{**parts, **changes})
    return evaluation.run(Unit(name, subject.seed, tuple(evaluation.subset.ids.tolist())))


def right(group: Group, side: str = "adv") -> np.ndarray:
    """(n,): the share of right samples of each image. `side`: `adv` or `clean`."""
    return np.array([np.mean([c == row["label"] for c in row[side]]) for row in group.rows])


def decisions(group: Group, side: str = "adv") -> np.ndarray:
    """(n,): 1 if the vote of an image is right, else 0. `side`: `adv` or `clean`."""
    return np.array([float(row[f"{side}_vote"] == row["label"]) for row in group.rows])


def above(first: Group, second: Group, comparisons: int = 1) -> tuple[str, float, float]:
    """Test if `second` leaves more accuracy than `first` on the same images.

    Returns the status, the mean difference, and the p of McNemar's test of the votes. WARN means that the paired 95 %
    interval of the difference is above 0. FAIL means that p is below the level, divided by `comparisons`.
    """
    difference, low, _ = paired(right(first), right(second))
    votes = decisions(first), decisions(second)
    p = mcnemar(*votes)
    more = difference > 0 and votes[1].mean() > votes[0].mean()
    status = "FAIL" if more and p < LEVEL / comparisons else "WARN" if low > 0 else "PASS"
    return status, difference, p


def worst(statuses: list[str]) -> str:
    """The gravest of these statuses."""
    order = ("INFO", *[v for v in VERDICTS if v != "INFO"])
    return max(statuses, key=order.index, default="PASS")


def percent(share: float) -> str:
    """A share in [0,1] as text, such as `42 %`."""
    return f"{100 * share:.0f} %"
