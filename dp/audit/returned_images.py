"""Checks of the attacked images: are they allowed, and does a file of them have the same score?"""

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

NEAR = 1.96  # standard deviations: a larger difference is a warning
ZERO = 0.5  # above this share of pixels without a gradient, the gradient is masked


@audited("returned images", "what the attack returned", needs="attack")
def returned(subject: Subject) -> Finding:
    """Check the images and states of the attack.

    No image should come back clean. No state should be outside the box or the ball, or hold NaN. The projection should
    not move a state. Most pixels should have a gradient.
    """
    name = "returned images"
    try:
        group, log = own(subject)
    except ValueError as error:  # the evaluation or the threat model refuses the attacked images
        return Finding(name, str(error), "allowed images", "FAIL", f"{len(subject.images.ids)} images", 0.0)
    clean = _clean(group, subject.images.x.cpu())
    far, zero = max(row["distance"] for row in group.rows), _zero(subject)
    value = (
        f"{len(clean)} images clean, largest distance {far:.4g}; "
        f"{log.box} states outside the box, {log.ball} outside the ball, "
        f"{log.not_finite} not finite, moved by the projection by {log.moved:.2g}; "
        f"{percent(zero)} of pixels without a gradient"
    )
    allowed = not (clean or log.box or log.ball or log.not_finite) and log.moved <= ROUNDING
    status = "PASS" if allowed and zero <= ZERO else "FAIL"
    goal = f"none of these; at most {percent(ZERO)} of pixels without a gradient"
    return Finding(name, value, goal, status, f"{len(group.rows)} images, {subject.arm.attack.steps} steps", 0.0)


def _clean(group: Group, x: Tensor) -> list[int]:
    """The ids of images that come back unchanged although the clean image was classified correctly.

    Images that were broken in-loop before the first step are left out.
    """
    unchanged = (group.x_adv == x).flatten(1).all(dim=1).tolist()
    return [
        row["id"]
        for row, equal in zip(group.rows, unchanged, strict=True)
        if equal and row["lost_at"] != 0 and row["clean_vote"] == row["label"]
    ]


def differentiated_by_attack(subject: Subject) -> dict[tuple[str, ...], Defended]:
    """The defenses that the run's attack differentiates, by the gradient modes on top of the attacked defense.

    There is none if the attack takes no gradient.
    """
    every = [modes for modes in gradients(subject.arm.attack, FULL) if modes != (VALUES,)]
    return {modes: subject.arm.attacked.gradient_modes(modes) for modes in every}


def _zero(subject: Subject) -> float:
    """The share of pixels whose gradient is zero, at a random point; of several gradient modes the largest share."""
    images, e, attack = subject.images, subject.evaluation, subject.arm.attack
    rng = Streams(images.ids, subject.seed, Stage.GRADIENT, subject.evaluation.rng)
    x = e.threat.proven_noise(images.x, rng.draw(0))[0]
    shares = [0.0]
    for model in differentiated_by_attack(subject).values():
        _, grad = model.loss_gradient(x, images.y, rng.draw(1), _samples(attack))
        shares.append(float((grad == 0).double().mean()))
    return max(shares)


def _samples(attack: Attack) -> int:
    return min(attack.samples, 4)


@audited("saved file", "attacked images saved, loaded and scored again", needs="nothing")
def rescored(subject: Subject) -> Finding:
    """Save the attacked images in float32, load them, and score them again.

    With the run's own samples the logits must be equal. With fresh samples the accuracy may differ by chance only. The
    effect of rounding to 8 bits is reported but not tested.
    """
    e, (group, _) = subject.evaluation, own(subject)
    ids = subject.images.ids.tolist()
    x = _through_a_file(group.x_adv).to(e.device)
    rounded = torch.empty_like(x).copy_((x * 255).round() / 255)

    def score(points: Tensor, stage: str) -> Tensor:
        return fresh_samples(subject.arm.scored, points, ids, subject.seed, stage, e.votes, len(ids), rng=e.rng)

    def rows(points: Tensor) -> list[Row]:
        logits = score(points, Stage.RESCORE)
        return [rescore.rescored(row, one, e.ties) for row, one in zip(group.rows, logits, strict=True)]

    equal = torch.equal(score(x, Scoring.ADV), group.adv)
    fresh = rows(x)
    drift, rounding = rescore.difference(fresh, group.rows), rescore.difference(rows(rounded), fresh)
    value = (
        f"own samples {'equal' if equal else 'differ'}, fresh samples {drift.value:+.1f} points "
        f"(sd {drift.std:.1f}), rounding to 8 bits {rounding.value:+.1f}"
    )
    agree, near = drift.agree, abs(drift.value) <= NEAR * drift.std
    if e.known_draws:  # the attack used the noise that scored, so fresh samples differ
        value, agree, near = f"{value}; the attacker knows the noise", True, True
    status = "FAIL" if not (equal and agree) else "PASS" if near else "WARN"
    count = f"{len(ids)} images, {e.votes} samples"
    return Finding("saved file", value, f"own samples equal; fresh samples within {NEAR} sd", status, count, 0.0)


def _through_a_file(x: Tensor) -> Tensor:
    """The images after saving and loading. They keep their memory format: a convolution's last bit depends on it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x_adv.safetensors"
        save_file({"x_adv": x.float().contiguous()}, path)
        loaded = load_file(path)["x_adv"]
    return torch.empty_like(x).copy_(loaded)


CHECKS = (returned, rescored)
QUICK = (returned,)
