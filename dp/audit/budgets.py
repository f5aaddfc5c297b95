"""Checks of the attack's budget: random noise in its place, other eps, more work, known noise."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dp.audit.check import Finding, Subject, audited, not_applicable, streams
from dp.audit.probes import SMALLEST
from dp.audit.reruns import above, noise, other, own, percent, right, small, worst
from dp.audit.stages import Stage
from dp.evaluation.caveats import short_steps
from dp.evaluation.evaluate import null_control
from dp.evaluation.rows import Group
from dp.output.report import short_steps_line
from dp.statistics.intervals import paired, wilson
from dp.threat_models.ball import BALLS

LEVELS = (2, 4, 8, 16, 32, 64)  # of 255, in l-infinity
FACTORS = (0.25, 0.5, 1.0, 2.0)  # of the run's eps in other norms
MORE = 4  # factor of "more work"
CANDIDATES = 3  # of the null control, whose size the quick audit measures
SMALLER = 0.8  # the null control is too small below this share of the threat model's own noise


class _Point(NamedTuple):
    """A point with its certificate, as a state of an attack."""

    x_adv: Tensor
    proof: Tensor


@audited("null control", "clean, random noise and attacked accuracy by one measure", needs="attack")
def null(subject: Subject) -> Finding:
    """Compare the accuracy on clean images, under random noise and under the attack.

    The random noise should have as many candidates and samples as the attack, and its images should be as far away as
    noise in the whole threat model is. The attack should leave less.
    """
    e, name = subject.evaluation, "null control"
    if "null" not in e.arms:
        return Finding(name, "the run has none", "a null control beside the attack", "WARN", "-", 0.0)
    control, expected = e.arms["null"].attack, null_control(subject.arm.attack, e.judge)
    counts = {"candidates": (control.steps, expected.steps), "samples": (control.samples, expected.samples)}
    counts |= {"selection samples": (control.selection_samples, expected.selection_samples)}
    short = [f"{what} {have} instead of {need}" for what, (have, need) in counts.items() if have < need]
    if control.select != expected.select:
        short.append(f"selects the {control.select} instead of the {expected.select}")
    if e.arms["null"].scored is not subject.arm.scored:
        short.append("another defense is scored")
    group, noisy = own(subject)[0], noise(subject)
    short += _smaller(subject, noisy, group)
    clean, null, attacked = right(group, "clean").mean(), right(noisy).mean(), right(group).mean()
    value = f"clean {percent(clean)}, noise {percent(null)}, attacked {percent(attacked)}"
    weak = attacked >= null
    if e.judge is not None and e.judge.in_loop:
        broken = [sum(row["lost_at"] is not None for row in g.rows) for g in (noisy, group)]
        value, weak = f"{value}; broken in-loop: noise {broken[0]}, attacked {broken[1]}", broken[1] <= broken[0]
    status = "FAIL" if short else "WARN" if weak else "PASS"
    threshold = "attacked below noise; noise of the same size with as many candidates and samples"
    return Finding(name, "; ".join([value, *short]), threshold, status, _count(subject), 0.0)


def _smaller(subject: Subject, noisy: Group, attacked: Group) -> list[str]:
    """A fault if the null control's images are nearer to the clean ones than noise of the threat model is.

    Its length is compared in two norms: the threat model's own, for the farthest image, and l2, for the median image.
    The noise to compare with is made here for a ball, and projected, because a threat model may restrict the ball.
    Otherwise it is the threat model's own. Of 256 uniform numbers
    the l2 norm has a standard deviation of 3 %, so a ratio of `SMALLER` is far from chance. The quick audit takes the
    null control's first candidates, because its own run has a smaller budget.
    """
    images, threat = subject.images, subject.evaluation.threat
    points, expected = _noise(subject)
    x_adv, have = noisy.x_adv.to(images.x), max(row["distance"] for row in noisy.rows)
    if subject.quick:
        x_adv, distance = threat.admit(_first_candidates(subject), images.x)
        have = float(distance.max())
    lengths = [(x - images.x).flatten(1).norm(dim=1) for x in (x_adv, points)]
    ratio = float((lengths[0] / lengths[1].clamp(min=SMALLEST)).median())
    if have >= SMALLER * expected and ratio >= SMALLER:
        return []
    attack = max(row["distance"] for row in attacked.rows)
    return [
        f"noise in a smaller radius: the farthest image is {have:.3g} away (noise of the threat model {expected:.3g}, "
        f"the attack {attack:.3g}, eps {threat.eps:.3g}), with {percent(ratio)} of its l2 length"
    ]


def _noise(subject: Subject) -> tuple[Tensor, float]:
    """Noise of the whole threat model, (B,C,H,W) in [0,1], and the distance of the farthest image."""
    x, threat = subject.images.x, subject.evaluation.threat
    rng = streams(subject, subject.images, Stage.NOISE_SIZE)
    if threat.norm not in BALLS:
        points, proof = threat.proven_noise(x, rng)
        return points, float(threat.admit(_Point(points, proof), x)[1].max())
    noise = rng.randn_like(x)
    noise = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    if threat.norm == "linf":
        noise = 2 * rng.uniform_like(x) - 1
    points = threat.project((x + threat.eps * noise).clamp(0, 1), x)
    length = (points - x).flatten(1)
    return points, float(length.norm(dim=1).max() if threat.norm == "l2" else length.abs().max())


def _first_candidates(subject: Subject) -> Any:
    """The state of the run's null control after a few steps."""
    arm, images, threat = subject.evaluation.arms["null"], subject.images, subject.evaluation.threat
    attack, rng = arm.attack.with_budget(eot=lambda n: 1), streams(subject, images, Stage.NOISE_SIZE)
    with torch.no_grad():
        state = attack.start(arm.attacked, images.x, images.y, threat, rng.draw(0))
        for k in range(min(attack.steps, CANDIDATES)):
            state = attack.step(arm.attacked, state, images.x, images.y, threat, rng.draw(1 + k))
    return state


@audited("eps sweep", "accuracy over the budget, up to an unbounded attacker", needs="attack")
def eps_sweep(subject: Subject) -> Finding:
    """Measure the accuracy over eps. It should fall, and reach chance where every image is allowed.

    There the attacker may replace the image by any other, so accuracy above chance is a weakness of the attack. The
    check fails if the steps can reach every point, four times the iterations do not help, and the gradient is declared
    exact. Otherwise it warns and names the budget.
    """
    name, threat = "eps sweep", subject.evaluation.threat
    whole = _whole(subject)
    levels = [k / 255 for k in LEVELS] if threat.norm == "linf" else [threat.eps * factor for factor in FACTORS]
    groups = [(eps, _at(subject, eps)) for eps in sorted({*levels, threat.eps})]
    if whole is not None:
        groups.append((whole, _at(subject, whole)))
    curve = [right(own(subject)[0], "clean"), *(right(g) for _, g in groups)]
    rises = [paired(a, b)[1] > 0 for a, b in itertools.pairwise(curve)]
    status, notes = "WARN" if any(rises) else "PASS", ["accuracy rises with eps"] if any(rises) else []
    if whole is not None:
        unbounded, note = _unbounded(subject, whole)
        status, notes = worst([status, unbounded]), [*notes, *note]
    points = [0.0, *(eps for eps, _ in groups)]
    shares = [float(c.mean()) for c in curve]
    text = ", ".join(f"{eps:.3g}: {percent(share)}" for eps, share in zip(points, shares, strict=True))
    series = {"x": points, "accuracy": [100 * share for share in shares]}
    goal = "falls with eps" + ("; at most chance unbounded" if whole is not None else "")
    return Finding(name, "; ".join([text, *notes]), goal, status, _count(subject), 0.0, series)


def _whole(subject: Subject) -> float | None:
    """The eps at which every image is allowed. None if the threat model is not a ball."""
    return {"linf": 1.0, "l2": float(subject.images.x[0].numel()) ** 0.5}.get(subject.evaluation.threat.norm)


def _at(subject: Subject, eps: float, times: int = 1, **changes: Any) -> Group:
    """The run's attack at another eps, with `times` as many iterations. `changes`: other fields of the evaluation."""
    e = subject.evaluation
    if eps == e.threat.eps and times == 1 and not changes:
        return own(subject)[0]
    attack, name = subject.arm.attack.with_budget(iterations=lambda n: times * n), f"eps {eps:.6g} x{times} {changes}"
    return other(subject, name, attack, threat=dataclasses.replace(e.threat, eps=eps), **changes)


def _unbounded(subject: Subject, eps: float, **changes: Any) -> tuple[str, list[str]]:
    """The status of the accuracy where every image is allowed, and the reason."""
    group = _at(subject, eps, **changes)
    if not _over_chance(group):
        return "PASS", []
    attack = subject.arm.attack
    short = short_steps(attack, dataclasses.replace(subject.evaluation.threat, eps=eps))
    steps = f"{attack.steps} steps of {attack.samples} samples"
    if short:
        return "WARN", [f"above chance unbounded: {short_steps_line(*short[0])}"]
    more = _at(subject, eps, MORE, **changes)
    helped = f"{MORE} times its iterations leave {percent(right(more).mean())}"
    if not _over_chance(more) or paired(right(more), right(group))[1] > 0:
        return "WARN", [f"above chance unbounded: {steps} are too few, {helped}"]
    status = "FAIL" if subject.claims_exact else "WARN"
    return status, [f"above chance unbounded and {helped}: optimizer or gradient ({subject.claimed_names}) broken"]


def _over_chance(group: Group) -> bool:
    return wilson(float(right(group).mean()), len(group.rows))[0] > 1 / group.adv.shape[2]


@audited("more work", "more iterations, samples and restarts", needs="attack")
def more_work(subject: Subject) -> Finding:
    """Run the attack with fewer and with more iterations, samples and restarts. More work should not leave more."""
    name, attack = "more work", subject.arm.attack
    times = {"iterations": (1 / MORE, 1, MORE), "eot": (1 / MORE, 1, MORE), "restarts": (1, MORE)}
    axes: dict[str, list[tuple[float, Group]]] = {}
    for key, factors in times.items():
        for factor in factors:
            scaled = attack.with_budget(**{key: lambda n, factor=factor: max(1, round(factor * n))})
            if factor == 1:
                axes.setdefault(key, []).append((1, own(subject)[0]))
            elif scaled != attack:
                axes.setdefault(key, []).append((factor, other(subject, f"{key} x{factor:g}", scaled)))
    axes = {key: points for key, points in axes.items() if len(points) > 1}
    if not axes:
        return not_applicable(name, "the attack has no iterations, samples or restarts to change")
    steps = [(a, b) for points in axes.values() for (_, a), (_, b) in itertools.pairwise(points)]
    status = worst([above(less, more, len(steps))[0] for less, more in steps])
    texts = [
        f"{key} " + ", ".join(f"x{factor:g} {percent(right(g).mean())}" for factor, g in points)
        for key, points in axes.items()
    ]
    return Finding(name, "; ".join(texts), "accuracy does not rise with more work", status, _count(subject), 0.0)


@audited("known noise", "an attacker who knows the noise that scores", needs="attack")
def known_noise(subject: Subject) -> Finding:
    """Compare an attacker who knows the noise of the one scoring sample with one who does not.

    Known noise should leave clearly less. The defense is then deterministic, so accuracy above chance where every image
    is allowed is a weakness of the attack, as in the eps sweep.
    """
    name, e = "known noise", subject.evaluation
    if subject.arm.attack.batch_bound:
        return not_applicable(name, "a package's attack does not name the image of a query")
    if not own(subject)[1].scored:
        return not_applicable(name, "the defense uses no noise")
    fresh = other(subject, "fresh noise", votes=1, known_draws=False) if e.known_draws else own(subject)[0]
    known = other(subject, "known noise", votes=1, known_draws=True)
    difference, low, _ = paired(right(known), right(fresh))
    clear = low > 0 or not _over_chance(known)
    value = f"known noise {percent(right(known).mean())}, fresh noise {percent(right(fresh).mean())}"
    status, notes = "PASS" if clear else "WARN", [f"{value}: {100 * difference:+.0f} points"]
    if (whole := _whole(subject)) is not None:
        unbounded, note = _unbounded(subject, whole, votes=1, known_draws=True)
        status, notes = worst([status, unbounded]), [*notes, *note]
    goal = "clearly below fresh noise" + ("; at most chance unbounded" if whole is not None else "")
    return Finding(name, "; ".join(notes), goal, status, f"{len(known.rows)} images, 1 sample", 0.0)


def _count(subject: Subject) -> str:
    e, attack = subject.evaluation, small(subject)
    return f"{len(subject.images.ids)} images, {e.votes} samples, {attack.steps} steps of {attack.samples}"


CHECKS = (null, eps_sweep, more_work, known_noise)
QUICK = (null,)
