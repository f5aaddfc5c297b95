"""A check that no image's result depends on the other images in its batch, on their order, or on their number."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dp.audit.answers import SAMPLES, Answer, answer, change, differ, scale
from dp.audit.check import Finding, Subject, audited, plural, some
from dp.audit.reruns import other
from dp.audit.stages import Stage
from dp.rng import Streams
from dp.subset import Subset

IMAGES = 4  # images of the attacks
STEPS = 3  # iterations of the attacks; momentum needs two
MOST = 60  # steps above which the quick audit leaves the attack out


@audited("batch", "results that depend on batch mates, order or batch size", needs="nothing")
def batch(subject: Subject) -> Finding:
    """Ask the defense and run the attack three times more: in reversed order, with another image in the last place, and
    without the last image.

    Images that are in both batches must have the same answers of the defense (purified images and logits), up to the
    rounding of another batch size, and the same attacked images. The noise of an image is the same in every batch.
    """
    if len(subject.images.ids) < 2:
        return Finding("batch", "does not apply: there is one image", "-", "INFO", "1 image", 0.0)
    faults, notes = _defense(subject)
    doubts = []
    if subject.arm.attack.batch_bound:
        doubts.append("rows depend on the batch: the attack is a package's")
    else:
        found = _attack(subject)
        faults += found
    status = "FAIL" if faults else "WARN" if (notes or doubts) else "PASS"
    value = "; ".join([*faults, *notes, *doubts]) or "no result depends on order, batch mates or batch size"
    return Finding("batch", value, "no difference", status, f"{len(subject.images.ids)} images, {SAMPLES} samples", 0.0)


def _batches(images: Subset) -> dict[str, tuple[Subset, list[int], list[int]]]:
    """Other batches by name, and the places that images have in the given batch and in the other one."""
    last = len(images.ids) - 1
    every = list(range(last + 1))
    x = images.x.clone()
    x[last] = 1 - images.x[0].flip(2)
    mate = images._replace(ids=torch.cat([images.ids[:last], images.ids.max()[None] + 1]), x=x)
    return {
        "another order": (images.select(torch.tensor(every[::-1])), every[::-1], every),
        "another batch mate": (mate, every[:last], every[:last]),
        "another batch size": (some(images, last), every[:last], every[:last]),
    }


def _defense(subject: Subject) -> tuple[list[str], list[str]]:
    """Faults of the scored defense, and doubts: differences of the last bit.

    An image counts as changed if its answer is beyond rounding. With another batch size a mask may jump at its
    threshold because of rounding, so there most images must change.
    """
    images, faults, notes = subject.images, [], []

    def ask(batch: Subset, seed: int = subject.seed) -> Answer:
        return answer(subject.arm.scored, batch.x, Streams(batch.ids, seed, Stage.NOISE, subject.evaluation.rng))

    first = ask(images)
    by = scale(first, ask(images, subject.seed + 1))
    for name, (batch, before, after) in _batches(images).items():
        given, found = first.of(before), ask(batch).of(after)
        count = int(differ(given, found, by).sum())
        if count > (len(before) / 2 if name == "another batch size" else 0):
            faults.append(f"the defense: {name} changes {_shown(count, before)}: it mixes the images of a batch")
        elif name == "another order" and float(change(given, found)[0].max()) > 0:
            notes.append("another order changes the last bit")
    return faults, notes


def _attack(subject: Subject) -> list[str]:
    """Faults of the attack. Its batches are padded to the same number of slots, so that rounding is the same."""
    attack = subject.arm.attack.with_budget(
        iterations=lambda n: min(n, STEPS), eot=lambda n: min(n, 2), restarts=lambda n: 1
    )
    if not attack.steps or (subject.quick and attack.steps > MOST):
        return []
    images, faults = some(subject.images, IMAGES), []

    def attacked(name: str, batch: Subset) -> Tensor:
        return other(subject, name, attack, subset=batch, lanes=len(images.ids), votes=1).x_adv

    first = attacked("batch", images)
    for name, (batch, before, after) in _batches(images).items():
        moved = (first[before] != attacked(f"batch, {name}", batch)[after]).flatten(1).any(dim=1)
        if bool(moved.any()):
            count = _shown(int(moved.sum()), before)
            faults.append(f"the attack: {name} changes {count}: it mixes the images of a batch")
    return faults


def _shown(count: int, of: Sequence[int]) -> str:
    return f"{plural(count, 'image')} of {len(of)}"


CHECKS = (batch,)
QUICK = CHECKS
