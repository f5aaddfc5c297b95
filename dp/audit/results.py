"""What came back: the attacked images themselves, and whether a file of them scores as they did (evaluation.md section
3, checks 12, 13).
"""

import functools
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dp.attacks import Attack
from dp.audit import Finding, Subject
from dp.audit.runs import own, percent, right, skipped, timed
from dp.defense import Defended
from dp.differences import gradients
from dp.evaluate import Group
from dp.rng import Streams
from dp.threat import slack

ZERO = 0.5  # share of pixels without a gradient above which it is called masked


@timed
def returned(subject: Subject) -> Finding:
    """Check 12: images that come back clean, outside the box or outside the ball, states that the threat model has to
    pull back or that are not finite, and pixels without a gradient.
    """
    name, attack, e = "returned images", subject.arm.attack, subject.evaluation
    if not attack.steps:
        return skipped(name, "no attack")
    try:
        group, diary = own(subject)
    except ValueError as error:  # the harness, or the threat model, does not take what the attack returns
        return Finding(name, str(error), "images that are allowed", "FAIL", f"{len(subject.images.ids)} images", 0.0)
    x, x_adv = subject.images.x.cpu(), group.x_adv
    clean = _clean(group, x)
    box = int(((x_adv < 0) | (x_adv > 1)).flatten(1).any(dim=1).sum())
    ball = sum(row["distance"] > e.threat.eps + slack for row in group.rows)
    far, zero = max(row["distance"] for row in group.rows), _zero(subject)
    value = (
        f"{len(clean)} clean, {box} outside the box, {ball} outside the ball (farthest {far:.4g}), "
        f"{diary.broken} states not finite, states pulled back by {diary.moved:.2g}, "
        f"{percent(zero)} of pixels without a gradient"
    )
    allowed = not (clean or box or ball or diary.broken) and diary.moved <= 10 * slack  # rounding
    verdict = "PASS" if allowed and zero <= ZERO else "FAIL"
    goal = f"none; at most {percent(ZERO)} without a gradient"
    return Finding(name, value, goal, verdict, f"{len(group.rows)} images, {attack.steps} steps", 0.0)


def _clean(group: Group, x: Tensor) -> list[int]:
    """Ids of images that come back bit for bit although the clean image was judged right; those that a judge called
    lost before the first step are not the attack's.
    """
    same = (group.x_adv == x).flatten(1).all(dim=1).tolist()
    return [
        row["id"]
        for row, equal in zip(group.rows, same, strict=True)
        if equal and row["lost_at"] != 0 and row["clean_vote"] == row["label"]
    ]


def views(subject: Subject) -> dict[str, Defended]:
    """The defences that the run's attack differentiates, by name; none for one that goes by values."""
    attack, attacked = subject.arm.attack, subject.arm.attacked
    names = sorted(gradients(attack, "full") - {"values"})
    return {name: functools.reduce(Defended.view, name.split("+"), attacked) for name in names}


def _zero(subject: Subject) -> float:
    """Largest share of pixels without any gradient, over the attack's views, at a random point."""
    images, e, attack = subject.images, subject.evaluation, subject.arm.attack
    rng = Streams(images.ids, subject.seed, "audit-gradient")
    x = e.threat.proven_noise(images.x, rng.draw(0))[0]
    shares = [0.0]
    for model in views(subject).values():
        _, grad = model.loss_gradient(x, images.y, rng.draw(1), _draws(attack))
        shares.append(float((grad == 0).double().mean()))
    return max(shares)


def _draws(attack: Attack) -> int:
    return min(attack.eot, 4)


@timed
def rescored(subject: Subject) -> Finding:
    """Check 13: the attacked images through a file of float32: with the run's draws the very logits, with fresh ones
    the accuracy up to the draws' own spread; rounding to 8 bits is reported apart.
    """
    name, e, scored = "saved file", subject.evaluation, subject.arm.scored
    group, _ = own(subject)
    ids, labels = subject.images.ids, subject.images.y.cpu()
    x = _through_a_file(group.x_adv).to(e.device)
    eight = torch.empty_like(x).copy_((x * 255).round() / 255)
    fresh = Streams(ids, subject.seed, "audit-rescore")
    with torch.no_grad():
        again = scored.logits(x, Streams(ids, subject.seed, "adv"), e.votes).transpose(0, 1).cpu()
        news, rounded = (scored.logits(points, fresh, e.votes).argmax(dim=2).cpu() == labels for points in (x, eight))
    same = torch.equal(again, group.adv)
    before, after = right(group), news.double().mean(dim=0).numpy()
    difference, spread = float((after - before).mean()), _spread(before, after, e.votes)
    value = (
        f"own draws {'equal' if same else 'differ'}, fresh draws {100 * difference:+.1f} points "
        f"(sd {100 * spread:.1f}), 8 bits {100 * float(rounded.double().mean() - news.double().mean()):+.1f}"
    )
    drift = abs(difference) / spread if spread else 0.0
    if e.known_draws:  # chosen against the draws that scored: fresh ones do differ
        value, drift = f"{value}; the attacker knows the draws", 0.0
    verdict = "FAIL" if not same or drift > 3 else "WARN" if drift > 1.96 else "PASS"
    count = f"{len(ids)} images, {e.votes} draws"
    return Finding(name, value, "equal; fresh draws within 1.96 sd", verdict, count, 0.0)


def _through_a_file(x: Tensor) -> Tensor:
    """Saved and loaded, in the memory format it had, on which the last bit of a convolution hangs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x_adv.safetensors"
        save_file({"x_adv": x.float().contiguous()}, path)
        loaded = load_file(path)["x_adv"]
    return torch.empty_like(x).copy_(loaded)


def _spread(first: np.ndarray, second: np.ndarray, draws: int) -> float:
    """Standard deviation of the difference of two means of `draws` draws of the same images, whose chances are the
    pooled ones.
    """
    chance = (first + second) / 2
    variance = chance * (1 - chance) * 2 * draws / max(1, 2 * draws - 1)  # unbiased
    return math.sqrt(float((2 * variance / draws).sum())) / len(chance)


CHECKS = (returned, rescored)
QUICK = (returned,)
