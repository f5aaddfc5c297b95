"""A check that a defense's answer depends on the image and on its noise alone."""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dp.audit.answers import Answer, Scale, answer, change, differ, recorded, scale
from dp.audit.check import Finding, Subject, audited, plural, streams
from dp.audit.reruns import watched
from dp.audit.stages import Stage
from dp.defense.defended import Defended
from dp.objectives import margin
from dp.rng import Streams
from dp.subset import Subset

# A defense may stretch a change of the image by this factor. The largest factor of the digits' thirteen sound defenses
# is 1.0, and without a purifier it is 1. Noise that is made from the image's content is another noise for every image,
# so a change of 1e-5 changes as much as another key does, by a factor of 1000 and more.
STRETCH = 5.0
SHARE = 0.05  # and the change must reach this share of what other noise changes
STEPS = (1e-5, 1e-4, 1 / 255)  # changes of every pixel, in [0,1]
DROPOUT = ("dropout_p", "dropout", "p")  # names that torch's operations give to the probability of dropout
# A discrete output changes in some of its parts, where the image crosses a threshold. An answer that is no longer
# taken from the memory changes at least at this share of its pixels. Pixels at 0 or 1 do not count, because a clamp
# keeps them, unless almost all are there.
WHOLE = 0.9
INSIDE = 0.05
LEVELS = 0.25  # fewer values than this share of its pixels: an output at levels


@audited("memory", "answers that depend on labels, on earlier calls, or on noise of their own", needs="nothing")
def memory(subject: Subject) -> Finding:
    """Ask the scored defense the same question in different situations. The answer must be the same.

    The situations are: with and without a gradient, with other labels, after other images, after a nearby image (a
    copy of the defense is asked first), and again at the end. Further faults are random numbers from a generator of
    torch or from other streams than the given ones, and noise that is made from the image's content: then a change of
    the image that is far smaller than a gray level changes the answer as much as other noise. A change of one gray
    level that changes nothing is a stored answer, unless the output is discrete: see `_stored`.
    """
    images, models = subject.images, {"scored": subject.arm.scored}
    if subject.arm.attacked is not subject.arm.scored:
        models["attacked"] = subject.arm.attacked
    lines = []
    for name, model in models.items():
        found = _faults(subject, model)
        lines += [line if len(models) == 1 else f"{name}: {line}" for line in found]
    value = "; ".join(lines) or "the answer depends on the image and its noise alone"
    count = f"{len(images.ids)} images, 3 samples"
    return Finding("memory", value, "no difference", "FAIL" if lines else "PASS", count, 0.0)


def _faults(subject: Subject, model: Defended) -> list[str]:
    """A sentence for each situation in which the answer changes."""
    images, x = subject.images, subject.images.x
    fresh = copy.deepcopy(model)
    drawn: list[str] = []

    def ask(what: Tensor, seed: int = subject.seed, of: Defended = model) -> Answer:
        return answer(of, what, Streams(images.ids, seed, Stage.MEMORY, subject.evaluation.rng))

    with _random_calls(drawn):
        first = ask(x)
    if drawn:  # what follows would blame the images or the order of calls
        return [f"random numbers come from torch's own generator ({drawn[0]}), not from the given noise"]
    by = scale(first, ask(x, subject.seed + 1))
    near = _nudged(subject, x, STEPS[-1])
    lines = _own_streams(subject, model)
    lines += _situations(subject, model, first, by)
    ask(1 - x.flip(3))
    lines += _named(differ(first, ask(x), by), "after other images")
    lines += _named(differ(ask(near), ask(near, of=fresh), by), "after a nearby image")
    lines += _from_content(subject, ask, by)
    if not lines:  # what has changed already changes here, too
        lines += _named(differ(first, ask(x), by), "when it is asked again")
    return lines


def _named(changed: Tensor, when: str) -> list[str]:
    count = int(changed.sum())
    cause = "the defense keeps memory between calls"
    return [f"{plural(count, 'image')} of {len(changed)} are answered otherwise {when}: {cause}"] if count else []


def _situations(subject: Subject, model: Defended, first: Answer, by: Scale) -> list[str]:
    """Faults of the purified images in a call for a gradient, for the right labels, for others, and again."""
    images, asked = subject.images, []
    for y in (images.y, (images.y + 1) % first.logits.shape[2], images.y):
        record, twin = recorded(model, len(images.ids))
        _gradient(twin, images._replace(y=y), Streams(images.ids, subject.seed, Stage.MEMORY, subject.evaluation.rng))
        asked.append(first._replace(x_hat=torch.cat(record.x_hat)))
    of, again = f"of {len(images.ids)} are purified otherwise", differ(asked[0], asked[2], by)
    if labels := int((differ(asked[0], asked[1], by) & ~again).sum()):
        return [f"{plural(labels, 'image')} {of} for another label: the purifier reads the label"]
    if gradient := int((differ(first, asked[0], by) & ~again).sum()):
        return [f"{plural(gradient, 'image')} {of} in a call for a gradient: the defense knows that it is attacked"]
    return []


def _gradient(model: Defended, images: Subset, rng: Streams) -> None:
    """Asks for a gradient. A defense that has none is asked for its loss."""
    try:
        model.loss_gradient(images.x, images.y, rng, 3, margin)
    except ValueError:
        model.loss(images.x, images.y, rng, 3, margin)


def _nudged(subject: Subject, x: Tensor, by: float) -> Tensor:
    """The images with every pixel changed by +-`by`, toward the middle of the box."""
    noise = streams(subject, subject.images, Stage.DIRECTIONS).draw(99).uniform_like(x)
    sign = torch.where(noise < 0.5, -1.0, 1.0)
    sign = torch.where((x - by < 0) | (x + by > 1), torch.where(x < 0.5, 1.0, -1.0), sign)
    return x + by * sign.to(x)


def _from_content(subject: Subject, ask: Callable[[Tensor], Answer], by: Scale) -> list[str]:
    """Faults if a small change of the image changes the answer as other noise does, or does not change it at all.

    The median over images counts, because a mask may jump at a threshold. An output at few levels may flip some of its
    pixels by a whole level: noise changes them all, or takes more values. The images are random points of the threat
    model, so that a tiny change takes some of their 256 or more pixels to another gray level.
    """
    noise = streams(subject, subject.images, Stage.DIRECTIONS).draw(98)
    x = subject.evaluation.threat.noise(subject.images.x, noise)
    first, pixels = ask(x), torch.zeros(())
    for step in STEPS:
        near = ask(_nudged(subject, x, step))
        pixels, _ = change(first, near)
        moved = float(pixels.median())
        flips = sum(_levels(first, k) and _share(first, near, k) < WHOLE for k in range(len(x)))
        if flips < len(x) / 2 and moved > STRETCH * step and moved > SHARE * by.x_hat:
            return [
                f"a change of {step:.1g} in every pixel changes the purified image by {moved:.2g}, other noise by "
                f"{by.x_hat:.2g}: the noise is made from the image's content"
            ]
    same = (pixels == 0).nonzero().flatten().tolist()
    if stored := sum(_stored(subject, ask, x, first, same)):
        which = f"{plural(stored, 'image')} of {len(x)}"
        return [f"{which} and the images one gray level beside have equal answers: the defense keeps earlier answers"]
    return []


def _stored(
    subject: Subject, ask: Callable[[Tensor], Answer], x: Tensor, first: Answer, same: Sequence[int]
) -> list[bool]:
    """For each image of `same`, whose answer one gray level does not change: True if the answer is a stored one.

    A purifier that declares that it has no gradient may be constant. Otherwise larger and larger changes are tried, and
    another image at last. The output is discrete if the first change that matters changes only some of its pixels.
    """
    if not same or "gradient" in subject.caveats.exceptions:
        return []
    found = dict.fromkeys(same, True)
    waiting, step = list(same), STEPS[-1]
    while waiting and step < 1:
        step *= 2
        answered = ask(_nudged(subject, x, step) if step < 0.5 else 1 - x.flip(3))
        for k in list(waiting):
            changed = _share(first, answered, k)
            if changed > 0:
                found[k] = changed >= WHOLE
                waiting.remove(k)
    return list(found.values())


def _levels(answered: Answer, image: int) -> bool:
    """True if the pixels of one image have few values, as levels that are rounded."""
    pixels = answered.x_hat[0, image]
    return pixels.unique().numel() < LEVELS * pixels.numel()


def _share(first: Answer, other: Answer, image: int) -> float:
    """The share of the pixels of one image that differ between two answers, of those not at 0 or 1 in the first."""
    before, after = first.x_hat[0, image], other.x_hat[0, image]
    counted = (before > 0) & (before < 1)
    counted |= float(counted.double().mean()) < INSIDE
    return float((before != after)[counted].double().mean())


def _own_streams(subject: Subject, model: Defended) -> list[str]:
    """A fault if a purification draws from streams that do not come from the given ones.

    Streams that are derived from others share the mark that a number was drawn.
    """
    given, drawn = [], []
    twin = watched(model, lambda rng, x_hat: given.append(rng.touched))

    def see(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code is Streams._drawn.__code__:
            drawn.append(frame.f_locals["self"].touched)

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        with torch.no_grad():
            twin.logits(subject.images.x, streams(subject, subject.images, Stage.MEMORY), 1)
    finally:
        sys.setprofile(before)
    own = sum(all(mark is not other for other in given) for mark in drawn)
    return (
        [f"{own} of {plural(len(drawn), 'draw')} of noise come from other streams than the given ones"] if own else []
    )


class _RandomCalls(TorchDispatchMode):
    """Writes down the torch operations that draw from a generator of torch."""

    def __init__(self, names: list[str]):
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded in func.tags and _by_chance(func, args, kwargs or {}):
            self.names.append(str(func).removeprefix("aten.").split(".")[0])
        return func(*args, **(kwargs or {}))


def _by_chance(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """False for an operation whose call has no dropout, such as attention: torch marks it as random all the same."""
    named = [argument.name for argument in func._schema.arguments]
    given = {a.name: a.default_value for a in func._schema.arguments} | dict(zip(named, args, strict=False)) | kwargs
    training = given.get("train", given.get("training"))
    return training is not False and all(given.get(name) != 0 for name in DROPOUT)


@contextmanager
def _random_calls(names: list[str]) -> Iterator[None]:
    with _RandomCalls(names):
        yield


CHECKS = (memory,)
QUICK = CHECKS
