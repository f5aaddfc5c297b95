"""Checks that compare attacks on the same images: black-box attacks, an ensemble and its parts, the worst case."""

import dataclasses

import numpy as np

from dp.attacks.apgd import APGD
from dp.attacks.autoattack import autoattack
from dp.attacks.base import FULL, VALUES, Attack
from dp.attacks.pgd_eot import PGD
from dp.attacks.spsa import SPSA
from dp.attacks.square import Square
from dp.attacks.through import Through
from dp.attacks.union import Union
from dp.audit.check import Finding, Subject, audited, not_applicable
from dp.audit.reruns import above, decisions, other, own, percent, right, worst
from dp.evaluation.caveats import gradients
from dp.evaluation.rows import Group
from dp.threat_models.ball import BALLS

QUERIES, STEPS, DIRECTIONS, BLIND = 200, 20, 32, 20  # Square's queries, SPSA's steps and directions, transfer's steps
ITERATIONS, EOT = 10, 4  # used if the run's attack has no such budget


@audited("black box", "attacks without gradients against the run's attack", needs="attack")
def black_box(subject: Subject) -> Finding:
    """Compare the run's attack with attacks that do not use the defense's gradient. None of them should leave less."""
    name, attack = "black box", subject.arm.attack
    why = _no_ball(subject)
    if why or gradients(attack, FULL) == ((VALUES,),):
        return not_applicable(name, why or "the run's attack takes no gradient itself")
    groups = {key: other(subject, key, part) for key, part in _black_boxes(subject).items()}
    return _table(subject, name, groups, "the run's attack leaves no more than each")


@audited("AutoAttack", "an ensemble against its own parts and PGD", needs="attack")
def autoattack_parts(subject: Subject) -> Finding:
    """Compare AutoAttack with each of its parts and with PGD+EOT. It should leave no more than any of them.

    If the run's attack is no ensemble, ours is used with the run's budget.
    """
    name, attack = "AutoAttack", subject.arm.attack
    why = _no_ball(subject)
    if why:
        return not_applicable(name, why)
    iterations, eot = budget_of(attack)
    ours = _autoattack(subject, iterations, eot)
    whole = own(subject)[0] if attack.is_ensemble else other(subject, "autoattack", ours)
    members = (attack if attack.is_ensemble else ours).members(_classes(subject))
    rivals: dict[str, Attack] = {f"part {key}": member for key, member in members.items()}
    rivals["pgd_eot"] = PGD(iterations, eot, select="last")
    if attack.is_baseline:
        subject.memo.setdefault("pgd_eot", own(subject)[0])
    groups = {key: other(subject, key, part) for key, part in rivals.items()}
    subject.memo["rivals"] = tuple(rivals)
    return _table(subject, name, groups, "the ensemble leaves no more than each", whole)


@audited("union of attacks", "the strongest of all attacks that ran, image by image", needs="attack")
def union(subject: Subject) -> Finding:
    """Compute the worst case over all attacks for each image. No single attack should leave less than the run's."""
    name = "union of attacks"
    why = _no_ball(subject)
    if why:
        return not_applicable(name, why)
    named = [*_black_boxes(subject), "autoattack", "pgd_eot", *subject.memo.get("rivals", ())]
    for key, part in _black_boxes(subject).items():
        if key == "transfer":
            other(subject, key, part)  # the cheapest, in case the other checks have not run
    groups = {key: group for key, group in subject.memo.items() if key in named}
    finding = _table(subject, name, groups, "no other attack alone leaves less than the run's")
    left = np.minimum.reduce([right(own(subject)[0]), *(right(g) for g in groups.values())])
    return dataclasses.replace(finding, value=f"worst case {percent(left.mean())}; {finding.value}")


def _table(subject: Subject, name: str, groups: dict[str, Group], goal: str, first: Group | None = None) -> Finding:
    """A finding with the accuracy that each attack leaves, and McNemar's p of the votes. For its status see `above`.

    `first`: the attack that should leave least, or None for the run's.
    """
    reference = own(subject)[0] if first is None else first
    tests = {key: above(group, reference, len(groups)) for key, group in groups.items()}
    cells = [f"{key} {percent(right(groups[key]).mean())} (p {p:.2g})" for key, (_, _, p) in tests.items()]
    value = ", ".join([f"{'run' if first is None else 'ensemble'} {percent(right(reference).mean())}", *cells])
    count = f"{len(reference.rows)} images, {subject.evaluation.votes} samples"
    status = worst([status for status, _, _ in tests.values()])
    curve = {"accuracy": [100 * float(right(g).mean()) for g in (reference, *groups.values())]}
    curve["vote"] = [100 * float(decisions(g).mean()) for g in (reference, *groups.values())]
    curve["x"] = [float(k) for k in range(1 + len(groups))]
    return Finding(name, value, goal, status, count, 0.0, curve)


def _no_ball(subject: Subject) -> str:
    """The reason why no other attack can be compared, or an empty text."""
    attack, norm = subject.arm.attack, subject.evaluation.threat.norm
    if norm not in BALLS or norm not in attack.norms:
        return f"there is no other attack under the threat model {norm}"
    return ""


def budget_of(attack: Attack) -> tuple[int, int]:
    """The iterations and samples of the run's attack, or of its largest part."""
    budget = attack.budget()
    return budget.get("iterations", ITERATIONS), budget.get("eot", EOT)


def _black_boxes(subject: Subject) -> dict[str, Attack]:
    """Square, SPSA, and transfer from the bare classifier. The steps of SPSA can cross the ball."""
    eot, eps = budget_of(subject.arm.attack)[1], subject.evaluation.threat.eps
    size = 2.5 * eps / STEPS
    if subject.evaluation.threat.norm == "l2":  # Adam's steps are per pixel
        size /= subject.images.x[0].numel() ** 0.5
    return {
        "transfer": Through(PGD(BLIND, 1, select="last"), "blind"),
        "square": Square(QUERIES, eot, rescale=True),
        "spsa": SPSA(STEPS, eot, directions=DIRECTIONS, step_size=size),
    }


def _classes(subject: Subject) -> int:
    return own(subject)[0].adv.shape[2]


def _targets(subject: Subject) -> int:
    return min(9, _classes(subject) - 1)


def _autoattack(subject: Subject, iterations: int, eot: int) -> Attack:
    targets = _targets(subject)
    if targets < 3:  # the targeted loss needs four classes
        return Union({"apgd_ce": APGD(iterations, eot)})
    return autoattack("fixed", "rand", iterations, eot, targets=targets)


CHECKS = (black_box, autoattack_parts, union)
QUICK = ()
