"""What came back: the attacked images themselves, and whether a file of them scores as they did (checks 12, 13)."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dp.attacks.base import FULL, VALUES, Attack
from dp.audit.check import Finding, Subject, audited
from dp.audit.reruns import ROUNDING, own, percent
from dp.audit.stages import Stage
from dp.defense.defended import Defended
from dp.evaluation.caveats import gradients
from dp.evaluation.draws import fresh_samples
from dp.evaluation.rows import Group, Row
from dp.evaluation.stages import Stage as Scoring
from dp.output import rescore
from dp.rng import Streams

NEAR = 1.96  # standard deviations
ZERO = 0.5  # share of pixels without a gradient above which it is called masked


@audited("returned images", needs="attack")
def returned(subject: Subject) -> Finding:
    """Check 12: images that come back clean, the attack's own states that are outside the box or the ball, not finite,
    or moved by the threat model, and pixels without a gradient.
    """
    name = "returned images"
    try:
        group, log = own(subject)
    except ValueError as error:  # the harness, or the threat model, does not take what the attack returns
        return Finding(name, str(error), "images that are allowed", "FAIL", f"{len(subject.images.ids)} images", 0.0)
    clean = _clean(group, subject.images.x.cpu())
    far, zero = max(row["distance"] for row in group.rows), _zero(subject)
    value = (
        f"{len(clean)} clean, farthest {far:.4g}; {log.box} states outside the box, {log.ball} outside the ball, "
        f"{log.not_finite} not finite, pulled back by {log.moved:.2g}; "
        f"{percent(zero)} of pixels without a gradient"
    )
    allowed = not (clean or log.box or log.ball or log.not_finite) and log.moved <= ROUNDING
    verdict = "PASS" if allowed and zero <= ZERO else "FAIL"
    goal = f"none; at most {percent(ZERO)} without a gradient"
    return Finding(name, value, goal, verdict, f"{len(group.rows)} images, {subject.arm.attack.steps} steps", 0.0)


def _clean(group: Group, x: Tensor) -> list[int]:
    """Ids of images that come back bit for bit although the clean image was judged right; those that a judge called
    broken before the first step are not the attack's.
    """
    same = (group.x_adv == x).flatten(1).all(dim=1).tolist()
    return [
        row["id"]
        for row, equal in zip(group.rows, same, strict=True)
        if equal and row["lost_at"] != 0 and row["clean_vote"] == row["label"]
    ]


def differentiated_by_attack(subject: Subject) -> dict[tuple[str, ...], Defended]:
    """The defenses that the run's attack differentiates, by their gradient modes on top of the attacked one; none for
    an attack that asks for values.
    """
    every = [modes for modes in gradients(subject.arm.attack, FULL) if modes != (VALUES,)]
    return {modes: subject.arm.attacked.gradient_modes(modes) for modes in every}


def _zero(subject: Subject) -> float:
    """Largest share of pixels without any gradient, over the attack's gradient modes, at a random point."""
    images, e, attack = subject.images, subject.evaluation, subject.arm.attack
    rng = Streams(images.ids, subject.seed, Stage.GRADIENT)
    x = e.threat.proven_noise(images.x, rng.draw(0))[0]
    shares = [0.0]
    for model in differentiated_by_attack(subject).values():
        _, grad = model.loss_gradient(x, images.y, rng.draw(1), _samples(attack))
        shares.append(float((grad == 0).double().mean()))
    return max(shares)


def _samples(attack: Attack) -> int:
    return min(attack.samples, 4)


@audited("saved file", needs="nothing")
def rescored(subject: Subject) -> Finding:
    """Check 13: the attacked images through a file of float32: with the run's samples the very logits, with fresh ones
    the accuracy up to the samples' own spread; rounding to 8 bits is reported apart.
    """
    e, (group, _) = subject.evaluation, own(subject)
    ids = subject.images.ids.tolist()
    x = _through_a_file(group.x_adv).to(e.device)
    eight = torch.empty_like(x).copy_((x * 255).round() / 255)

    def score(points: Tensor, stage: str) -> Tensor:
        return fresh_samples(subject.arm.scored, points, ids, subject.seed, stage, e.votes, len(ids))

    def rows(points: Tensor) -> list[Row]:
        logits = score(points, Stage.RESCORE)
        return [rescore.rescored(row, one, e.ties) for row, one in zip(group.rows, logits, strict=True)]

    same = torch.equal(score(x, Scoring.ADV), group.adv)
    news = rows(x)
    drift, rounding = rescore.difference(news, group.rows), rescore.difference(rows(eight), news)
    value = (
        f"own samples {'equal' if same else 'differ'}, fresh samples {drift.value:+.1f} points "
        f"(sd {drift.std:.1f}), 8 bits {rounding.value:+.1f}"
    )
    agree, near = drift.agree, abs(drift.value) <= NEAR * drift.std
    if e.known_draws:  # chosen against the noise that scored: fresh samples do differ
        value, agree, near = f"{value}; the attacker knows the noise", True, True
    verdict = "FAIL" if not (same and agree) else "PASS" if near else "WARN"
    count = f"{len(ids)} images, {e.votes} samples"
    return Finding("saved file", value, f"equal; fresh samples within {NEAR} sd", verdict, count, 0.0)


def _through_a_file(x: Tensor) -> Tensor:
    """Saved and loaded, in the memory format it had, on which the last bit of a convolution hangs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x_adv.safetensors"
        save_file({"x_adv": x.float().contiguous()}, path)
        loaded = load_file(path)["x_adv"]
    return torch.empty_like(x).copy_(loaded)


CHECKS = (returned, rescored)
QUICK = (returned,)
