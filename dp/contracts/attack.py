"""The contract of an attack: feasible at every step, away from the image, the same for the same streams, and no image
depends on its batch mates, their number, its place or when it entered.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dp.attacks.base import Attack
from dp.attacks.state import named, where
from dp.classifiers import Classifier
from dp.contracts.failure import Failure, Raised, called, difference
from dp.defense.defended import Defended
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import BALLS, ThreatModel

SLACK = 1e-6  # rounding of a projection
LATE = 3  # steps by which some images enter later
STRANGERS = 1000  # ids of images that are put beside others
KEPT = 2  # images whose batch mates are exchanged
LEAST_STEPS = 4  # iterations of an attack that has a budget, so that its steps can differ
WHOLE_BATCH = (
    "the likely cause is a mean, norm, sort or maximum over the whole batch: take it over dim=(1, 2, 3) of each image. "
    "If an image's result must depend on the others, set the member batch_bound to True"
)


class Pixels(nn.Module):
    """A small classifier of fixed random weights, computed image by image: its bits do not depend on the batch."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(channels, 8, 3, stride=2)
        self.tanh = nn.Tanh()
        self.weight = nn.Parameter(8 * torch.randn(classes, 8, generator=generator))
        with torch.no_grad():
            self.conv.weight.normal_(0, 1, generator=generator)
            self.conv.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.tanh(self.conv(one)).mean(dim=(2, 3)) @ self.weight.T for one in x.split(1)])


def jitter(
    x: Tensor, denoiser: None, classifier: Classifier, rng: Streams, *, on_step=None, std: float = 0.05
) -> Tensor:
    """A purifier that adds noise and pulls to gray, image by image. It tells `on_step` of one step."""
    z = 2 * (x + std * rng.randn_like(x)) - 1
    x0 = 0.9 * z
    if on_step is not None:
        on_step(0, 2 * std, z, x0)
    return ((x0 + 1) / 2).clamp(0, 1)


def plain_defense(attack: Attack, channels: int, classes: int) -> Defended:
    """A small randomized defense whose bits do not depend on the batch, with every gradient variant that the attack
    asks for.
    """
    modes = {mode for part in attack.parts() for mode in (*part.modes, part.attack.gradient)}
    classifier = Classifier(Pixels(channels, classes), taps=["tanh"])
    return Defended(jitter, None, classifier, draws_per_call=2, variants={mode: {"std": 0.02} for mode in modes})


def failures(attack: Attack, model: Defended, images: Subset, threat: ThreatModel, classes: int) -> list[Failure]:
    """The properties of the contract that the attack does not have, on at least four images.

    It attacks `model` once, which shows what holds at every step. Whether images depend on one another it shows
    against `plain_defense`, for a classifier of so many `classes`.
    """
    try:
        found = _of_one_run(attack, model, images, threat)
        if any(failure.name != "moves" for failure in found):
            return found
        plain = plain_defense(attack, images.x.shape[1], classes)
        return found + _of_batches(attack, plain, images, threat.seen_by(plain.classifier))
    except Raised as error:
        return [error.failure]


def _of_one_run(attack: Attack, model: Defended, images: Subset, threat: ThreatModel) -> list[Failure]:
    """What is wrong at the first step at which something is, or with the image that is returned."""
    if not isinstance(attack.steps, int) or attack.steps < 0:
        return [Failure("steps", f"steps is {attack.steps!r}", "return the number of calls of step, a whole number")]
    if not isinstance(called("says", attack.says, "the defense"), str):
        return [Failure("says", "says(through) returned no text", "return one line for people")]
    x, y = images.x, images.y
    given, labels, rng = x.clone(), y.clone(), Streams(images.ids, 0, "attack")
    state, before = called("start", attack.start, model, given, labels, threat, rng.draw(0)), {}
    for i in range(attack.steps + 1):
        what = f"step {i}" if i else "start"
        if i:
            state_in, before = state, {name: tensor.clone() for name, tensor in named(state).items()}
            state = called(what, attack.step, model, state, given, labels, threat, rng.draw(i))
            before = {name: (tensor, named(state_in)[name]) for name, tensor in before.items()}
        if not torch.equal(given, x) or not torch.equal(labels, y):
            changed = f"x in place, {difference(given, x)}" if torch.equal(labels, y) else "the labels in place"
            advice = "write x = x + ... in place of x += ..., or work on x.clone()"
            return [Failure("input", f"{what} changed {changed}", advice)]
        found = _of_state(what, state, x, threat)
        altered = [name for name, (old, now) in before.items() if not torch.equal(old, now)]
        if altered:
            advice = "return a new state with new tensors: an image may have to stay where it was"
            found.append(Failure("state", f"{what} changed {altered[0]} of the state in place", advice))
        if found:
            return found
    return _of_result(attack, state.x_adv, x, threat)


def _of_state(what: str, state: object, x: Tensor, threat: ThreatModel) -> list[Failure]:
    try:
        parts = named(state)
        x_adv = parts["x_adv"]
    except (TypeError, AttributeError, KeyError, RecursionError):
        advice = "a state is a NamedTuple of tensors, nested where needed, with the field x_adv"
        return [Failure("state", f"{what} returned {type(state).__name__}, which is no such state", advice)]
    for name, tensor in parts.items():
        if not isinstance(tensor, Tensor) or tensor.dim() < 1 or len(tensor) != len(x):
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            advice = "dimension 0 of every part is the image, because images enter and leave a batch"
            return [Failure("state", f"part {name} after {what} is {shape} for {len(x)} images", advice)]
    if not bool(torch.isfinite(x_adv).all()):
        return [Failure("finite", f"x_adv is NaN or infinite after {what}", "look for a division by zero")]
    allowed, distance = called("the threat model", threat.admit, state, x)
    excess, outside = distance.max().item() - threat.eps, (allowed - x_adv).abs().max().item()
    if outside <= SLACK and excess <= SLACK and x_adv.min() >= 0 and x_adv.max() <= 1:
        return []
    far = threat.distance(x_adv, x).max().item() if threat.norm in BALLS else distance.max().item()
    reach = f"from {x_adv.min().item():.3g} to {x_adv.max().item():.3g}, at a distance of {far:.4g}"
    found = f"x_adv after {what} is {reach} (need [0, 1] and {threat.norm} {threat.eps:.4g})"
    return [Failure("feasible", found, "end start and step with threat.project(x_adv, x)")]


def _of_result(attack: Attack, x_adv: Tensor, x: Tensor, threat: ThreatModel) -> list[Failure]:
    """The attacked images lie away from the clean ones, where there is any step."""
    if attack.steps == 0:
        far = (x_adv - x).abs().max().item()
        return [Failure("moves", f"without a step x_adv is {far:.2g} from x", "return x")] if far else []
    if threat.norm in BALLS:
        reaches = [part.attack.reach(threat) for part in attack.parts()]
        least = 0.5 * min(threat.eps, *(reach for reach in reaches if reach is not None), threat.eps)
        moved = threat.distance(x_adv, x)
    else:  # the image alone does not show its distance
        least, moved = 0.01, (x_adv - x).abs().flatten(1).amax(dim=1)
    still = int((moved <= least).sum())
    if not still:
        return []
    what = f"{still} of {len(x)} images end nearer than {least:.3g} to where they began ({moved.min().item():.3g})"
    advice = "an attack returns an image that it cannot break attacked, never clean; the likely causes are a gradient "
    advice += "of zero and a step that is too small. If it is so by design, write exceptions: {moves: REASON}"
    return [Failure("moves", what, advice)]


class _Batch:
    """Runs of an attack, with whole batches that differ in one thing.

    The losses and gradients of mates and strangers differ as much as can be. A mate has its least likely label, so both
    are large from the start on. A stranger has its most likely label, so both begin small and grow.
    """

    def __init__(self, attack: Attack, model: Defended, images: Subset, threat: ThreatModel):
        self.attack = attack.with_budget(iterations=lambda n: max(n, LEAST_STEPS))
        self.model, self.threat = model, threat
        x, strange = images.x, 1 - images.x
        with torch.no_grad():
            likely = model.classifier(x).argsort(dim=1, descending=True)  # (B,K) labels, the most likely first
            labels = torch.cat([likely[:KEPT].diagonal(), likely[KEPT:, -1]])
            self.strangers = Subset(images.ids + STRANGERS, strange, model.classifier(strange).argmax(1))
        self.images = Subset(images.ids, x, labels)

    def attacked(self, order: Sequence[int], strangers: int = 0, late: bool = False) -> dict[str, Tensor]:
        """The final states of the images at these positions, in this order, by part. `strangers`: other images that
        come after them. `late`: every third image, and every stranger, enters some steps after the others.
        """
        s, n = self.images.select(torch.tensor(order)), len(order)
        if strangers:
            others = self.strangers.select(torch.arange(strangers))
            s = Subset(*(torch.cat([a, b]) for a, b in zip(s, others, strict=True)))
        position = torch.arange(len(s.x))
        behind = ((position % 3 == 1) | (position >= n)) & torch.tensor(late)
        return {name: part[:n] for name, part in self._run(s, behind).items()}

    def _run(self, s: Subset, behind: Tensor) -> dict[str, Tensor]:
        rng, done, steps = Streams(s.ids, 0, "attack"), torch.zeros(len(s.x), dtype=torch.long), self.attack.steps
        x, y = s.x.clone(), s.y.clone()
        state = called("start", self.attack.start, self.model, x, y, self.threat, rng.draw(0))
        for i in range(steps + LATE * int(behind.any())):
            moves = (done < steps) & ~(behind & torch.tensor(i < LATE))
            streams = rng.draw((1 + done).tolist())
            after = called("step", self.attack.step, self.model, state, x, y, self.threat, streams)
            state, done = where(moves, after, state), done + moves
        return named(state)


def _of_batches(attack: Attack, model: Defended, images: Subset, threat: ThreatModel) -> list[Failure]:
    """One run with everything changed at once; only where it differs, a run for each change to say which it was."""
    batch, everyone, some = _Batch(attack, model, images, threat), [*range(len(images.x))], [1, 0]
    plain = batch.attacked(everyone)
    if not attack.batch_bound and not _unequal(batch.attacked(some, strangers=1, late=True), plain, some):
        return []
    again = _unequal(batch.attacked(everyone), plain, everyone)
    if again:
        advice = "draw noise from rng only (rng.draw, threat.random_start, rng.randn_like), never from torch.randn or "
        advice += "torch.rand, and keep nothing in the attack between calls"
        return [Failure("determinism", f"the same streams gave another result, {again}", advice)]
    if attack.batch_bound:
        return []
    kept, turned = everyone[:KEPT], everyone[::-1]
    others = len(everyone) - KEPT
    changes = (  # the property, what changes, the positions, strangers, whether some enter late, the advice
        ("batch mates", "its batch mates change", kept, others, False, WHOLE_BATCH),
        ("batch size", "the number of its batch mates changes", kept, 0, False, WHOLE_BATCH),
        (
            "order",
            "its place in the batch changes",
            turned,
            0,
            False,
            "draw noise from rng only: each image has a stream",
        ),
        ("refill", "it enters the batch later", everyone, 0, True, "keep what counts steps in the state, per image"),
    )
    for name, when, order, strangers, late, advice in changes:
        how = _unequal(batch.attacked(order, strangers, late), plain, order)
        if how:
            return [Failure(name, f"the result of an image changes if only {when}, {how}", advice)]
    how = _unequal(batch.attacked(some, strangers=1, late=True), plain, some)
    return [Failure("batch", f"the result of an image changes with its batch, {how}", WHOLE_BATCH)]


def _unequal(found: dict[str, Tensor], plain: dict[str, Tensor], order: list[int]) -> str:
    """How the state of an image differs from the one that it has in the plain batch; empty if it does not.

    All parts of the state count, since what they do to x_adv may show on other images only.
    """
    for name in sorted(plain, key=lambda name: name != "x_adv"):
        if not torch.equal(found[name], plain[name][order]):
            part = "" if name == "x_adv" else f"in part {name} of its state, "
            return part + difference(found[name], plain[name][order])
    return ""
