"""A check that the attack moves until its end and uses its whole radius."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dp.attacks.base import VALUES, Attack
from dp.audit.check import Finding, Subject, audited, not_applicable, plural, some, streams
from dp.audit.reruns import draws, percent, watched
from dp.audit.stages import Stage
from dp.defense.known_noise import KnownNoise
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import BALLS, ThreatModel

# Shares of the radius that the farthest image must reach. In linf one pixel is enough for it, and a random start alone
# puts one there: of 256 pixels the farthest of a uniform start is beyond .98. In l2 the box cuts what the ball allows;
# the least that the attacks and the noise reach on digits is .88.
USED = {"linf": 0.9, "l2": 0.75}
# Distance from the first iterate, as a share of eps, that an iterate must reach: a random start alone fills the radius.
# On digits the attacks whose steps are long enough go 1.0 and more: they start at the clean image, or move to the other
# side of the ball.
WAY = 0.5
CYCLE = 8  # iterates before the current one that it may repeat
STILL = 1e-3  # a step that moves an image by less than this share of eps does not move it
CORNER = 0.95  # an image is at its corner, where it may rest, if so many pixels are at the ball's or the box's bounds
# An image stops early if it rests during so large a share of the last steps; the very last step may only choose.
STOPPED = 0.1
# Share of steps that may leave an image where it is. An attack's first step may only evaluate its start: the attacks on
# digits have at most .25, in 4 steps.
RESTING = 0.4
MOST = 100  # steps of all parts together in the quick audit
FEW = 5  # iterations at least, and those of attacks that only compare values


class _Path(NamedTuple):
    """The course of an attack on B images in T steps."""

    distance: Tensor  # (B,): of the returned images
    rests: Tensor  # (T,B): True if an image did not move although it could
    way: Tensor  # (B,): the largest distance of an iterate from the first one

    @property
    def stopped(self) -> Tensor:
        """(B,): True for the images that stop early."""
        steps = len(self.rests)
        trailing = self.rests.flip(0).cumprod(dim=0).sum(dim=0) - 1
        return trailing >= max(2.0, STOPPED * steps)


@audited("radius", "attacks that stop early or use only a part of their radius", needs="attack")
def radius(subject: Subject) -> Finding:
    """Follow the attack's iterates, and measure how far the returned images are from the clean ones.

    The attack should go on until its end. An iterate that repeats is no fault where it cannot move on: at a corner of a
    linf ball, or at the surface of an l2 ball while the attack still asks for gradients. An attack that compares values
    alone keeps its iterate until it finds a better one. The quick audit follows two images, with one sample for each
    gradient and up to `MOST` steps.
    """
    attack, threat = subject.arm.attack, subject.evaluation.threat
    if attack.batch_bound:
        return not_applicable("radius", "a package's attack runs as one step")
    images = some(subject.images, 2 if subject.quick else 4)
    attack = _shortened(subject) if subject.quick else attack
    path = _followed(subject, attack, images)
    lines, notes, texts = _lengths(subject, attack, path) if threat.norm in BALLS else ([], [], [])
    if subject.claimed:
        stopped, resting = int(path.stopped.sum()), float(path.rests.double().mean())
        last = int((~path.rests).any(dim=1).nonzero().max()) + 1 if not bool(path.rests.all()) else 0
        texts.append(f"{percent(resting)} of steps rest")
        if stopped:
            share = f"{plural(stopped, 'image')} of {len(images.ids)}"
            words = f"{share} stop moving early, the last at step {last} of {attack.steps}"
            (lines if 2 * stopped >= len(images.ids) else notes).append(words)
        elif resting > RESTING:
            lines.append("the iterates repeat")
    status = "FAIL" if lines else "WARN" if notes else "PASS"
    goal = "moves to its end" + (f"; at least {USED[threat.norm]:g} of eps" if threat.norm in BALLS else "")
    count = f"{len(images.ids)} images, {attack.steps} steps of {attack.samples}"
    return Finding("radius", "; ".join([*lines, *notes, *texts]), goal, status, count, 0.0)


def _lengths(subject: Subject, attack: Attack, path: _Path) -> tuple[list[str], list[str], list[str]]:
    """Faults, doubts and measured values of how far a ball's images and iterates are away."""
    threat, reach = subject.evaluation.threat, attack.reach(subject.evaluation.threat)
    used, way = (float(length.max()) / threat.eps for length in (path.distance, path.way))
    short = reach is not None and reach < threat.eps
    texts, found = [f"the farthest image uses {percent(used)} of eps"], []
    if used < USED[threat.norm]:
        cause = "its steps together are too short" if short else "the attack works in a smaller ball"
        found.append(f"only {percent(used)} of eps are used: {cause}")
    if subject.claimed:
        texts.append(f"its iterates go {percent(way)} of eps away from the first one")
        if way < WAY and not found:
            cause = "its steps together are too short" if short else "its start fills the radius, not its steps"
            found.append(f"the iterates go only {percent(way)} of eps away from the first one: {cause}")
    return ([], found, texts) if short else (found, [], texts)


def _shortened(subject: Subject) -> Attack:
    """The attack with one sample for each gradient, one restart, and at most `MOST` steps of all parts together.

    An attack of many parts keeps `FEW` iterations in each.
    """
    attack = subject.arm.attack.with_budget(eot=lambda n: 1, restarts=lambda n: 1)
    for most in range(MOST if subject.claimed else FEW, FEW - 1, -1):
        shorter = attack.with_budget(iterations=lambda n, most=most: min(n, most))
        if shorter.steps <= MOST:
            return shorter
    return attack.with_budget(iterations=lambda n: min(n, FEW))


def _followed(subject: Subject, attack: Attack, images: Subset) -> _Path:
    """The course of the attack. Every step has noise of its own, as in a run."""
    evaluation, threat, asked, noisy = subject.evaluation, subject.evaluation.threat, [0], [False]

    def see(noise: Streams, x_hat: Tensor) -> None:
        asked[0] += 1
        noisy[0] |= draws(subject.arm.attacked, noise)

    model: Any = watched(subject.arm.attacked, see)
    if evaluation.known_draws:
        model = KnownNoise(model, streams(subject, images, Stage.TRAJECTORY), evaluation.votes)
    rng, given = streams(subject, images, Stage.RADIUS), (images.x, images.y, threat)
    compares = any(part.attack.gradient == VALUES for part in attack.parts())
    state: Any = attack.start(model, *given, rng.draw(0))
    first = threat.admit(attack.current(state), images.x)[0]
    past, rests, way = [first], [], torch.zeros(len(first), dtype=torch.float64, device=first.device)
    for k in range(attack.steps):
        asked[0] = 0
        state = attack.step(model, state, *given, rng.draw(1 + k))
        point = threat.admit(attack.current(state), images.x)[0]
        # Without noise a sign step may come back to where it was; with noise it does not by chance.
        old = past[-CYCLE:] if noisy[0] else past[-1:]
        rest = torch.stack([_distance(threat, point, at) for at in old]).amin(dim=0) <= STILL * threat.eps
        if asked[0]:
            rest &= ~_at_bound(threat, point, images.x) & (not compares)
        rests.append(rest)
        way = torch.maximum(way, _distance(threat, point, first).to(way))
        past = [*old, point]
    return _Path(threat.admit(state, images.x)[1], torch.stack(rests), way)


def _distance(threat: ThreatModel, first: Tensor, second: Tensor) -> Tensor:
    """(B,): how far two points are apart, in the threat model's norm, or in linf if it is no ball."""
    if threat.norm in BALLS:
        return threat.distance(first, second)
    return (first - second).abs().flatten(1).amax(dim=1)


def _at_bound(threat: ThreatModel, point: Tensor, x: Tensor) -> Tensor:
    """(B,): True for images that the bounds of the ball and the box may keep where they are."""
    if threat.norm == "linf":
        rounding = 1e-3 * threat.eps
        bound = (point - x).abs() >= threat.eps - rounding
        bound |= (point <= rounding) | (point >= 1 - rounding)
        return bound.flatten(1).double().mean(dim=1) >= CORNER
    if threat.norm == "l2":
        return threat.distance(point, x) >= USED["l2"] * threat.eps
    return torch.ones(len(x), dtype=torch.bool, device=x.device)


CHECKS = (radius,)
QUICK = CHECKS
