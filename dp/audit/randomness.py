"""Checks of randomness and decisions: samples have noise of their own, and images are normalized once."""

import torch
from torch import Tensor, nn

from dp.audit.answers import SAMPLES, Answer, answer, recorded
from dp.audit.check import Finding, Subject, audited, streams
from dp.audit.reruns import own, percent
from dp.audit.returned_images import differentiated_by_attack
from dp.audit.stages import Stage
from dp.classifiers import Classifier, RandomizedClassifier
from dp.defense.defended import Defended
from dp.evaluation.caveats import differences
from dp.rng import Streams
from dp.statistics.intervals import paired, wilson

GAP = 0.02  # allowed difference of clean accuracy between the attacked and the scored defense
TIES = 0.1  # allowed share of tied votes
CLOSE = 1e-3  # allowed rounding of an image in [0,1], and of the first layer's input


@audited("randomness", "keys of the noise, and noise that attack and scoring share", needs="nothing")
def randomness(subject: Subject) -> Finding:
    """Check the noise of the defense.

    The same key must give the same bits, and another key other noise. The copies of an image in one gradient must have
    noise of their own. No noise of the attack or the selection may also score.
    """
    faults = [*_keys(subject), *_eot(subject), *_shared(subject)]
    value = "; ".join(faults) or "each sample has its own noise"
    count = f"{len(subject.images.ids)} images, {SAMPLES} samples"
    return Finding("randomness", value, "no mismatch", "FAIL" if faults else "PASS", count, 0.0)


def _keys(subject: Subject) -> list[str]:
    """Faults of the scored defense: noise that does not follow its key."""
    images = subject.images

    def ask(seed: int) -> Answer:
        return answer(subject.arm.scored, images.x, Streams(images.ids, seed, Stage.NOISE, subject.evaluation.rng))

    first, again, fresh = ask(subject.seed), ask(subject.seed), ask(subject.seed + 1)
    equal = torch.equal(first.x_hat, again.x_hat) and torch.equal(first.logits, again.logits)
    faults = [] if equal else ["the same key gives other bits"]
    unmoved = (first.x_hat == fresh.x_hat).flatten(2).all(dim=2)  # (S,B)
    if first.used and bool(unmoved.any()):
        faults.append("another key gives the same noise")
    if isinstance(subject.arm.scored.classifier, RandomizedClassifier):
        if bool((first.logits == fresh.logits).all(dim=2).any()):
            faults.append("another key gives the same noise of the classifier")
        elif _any_equal(first.logits):
            faults.append("the samples of an image share the noise of the classifier")
    return faults


def _eot(subject: Subject) -> list[str]:
    """A fault if the copies of an image in one gradient share their noise."""
    images, shared = subject.images, False
    for model in differentiated_by_attack(subject).values():
        record, twin = recorded(model, len(images.ids))
        twin.loss_gradient(images.x, images.y, streams(subject, images, Stage.EOT), SAMPLES)
        shared |= record.used and _any_equal(torch.cat(record.x_hat))
    return ["the EOT copies of an image share their noise"] if shared else []


def _any_equal(samples: Tensor) -> bool:
    """True if two of several samples (S,B,...) are equal for all images."""
    return any(bool((samples[a] == samples[b]).all()) for a in range(len(samples)) for b in range(a))


def _shared(subject: Subject) -> list[str]:
    """A fault if noise of the attack or the selection also scored."""
    if not subject.arm.attack.steps or subject.evaluation.known_draws:  # DW-box: the noise is shared on purpose
        return []
    log = own(subject)[1]
    both = len(log.used & log.scored)
    return [f"attack and scoring share {both} of {len(log.scored)} samples"] if both else []


@audited("decisions", "clean gap between attacked and scored, ties, normalization", needs="nothing")
def decisions(subject: Subject) -> Finding:
    """Check the decisions on clean images.

    The attacked and the scored defense should have the same clean accuracy, votes should rarely be tied, and the input
    of the classifier's first layer should be normalized once.
    """
    attacked, scored, _ = subject.arm
    faults, notes, texts = [], [], []
    gap, low, high = (0.0, 0.0, 0.0) if attacked is scored else _gap(subject)
    texts.append(f"clean accuracy, attacked minus scored: {100 * gap:+.1f} points")
    if abs(gap) > GAP and not low <= 0 <= high:
        # A declared approximation is a doubt and no fault.
        known = differences(attacked, scored) or subject.claims != ((),) or not subject.exact
        (notes if known else faults).append("attacked and scored defense differ on clean images")
    rows = own(subject)[0].rows
    tied = sum(row["ties"] for row in rows) / (2 * len(rows))
    texts.append(f"{percent(tied)} of votes tied")
    if wilson(tied, 2 * len(rows))[0] > TIES:
        notes.append("many ties")
    for name, model in {"attacked": attacked, "scored": scored}.items():
        faults += [f"{name}: {fault}" for fault in _normalized(subject, model)]
    status = "FAIL" if faults else "WARN" if notes else "PASS"
    goal = f"gap within {percent(GAP)} or chance; ties within {percent(TIES)}; mean and std applied once"
    count = f"{len(rows)} images, {subject.evaluation.votes} samples"
    return Finding("decisions", "; ".join([*faults, *notes, *texts]), goal, status, count, 0.0)


def _gap(subject: Subject) -> tuple[float, float, float]:
    """Clean accuracy of the attacked minus that of the scored defense, on the same noise, with its 95 % interval."""
    images, shares = subject.images, []
    for model in (subject.arm.scored, subject.arm.attacked):
        with torch.no_grad():
            logits = model.logits(images.x, streams(subject, images, Stage.CLEAN), 2 * SAMPLES)
        shares.append((logits.argmax(dim=2) == images.y).double().mean(dim=0).cpu().numpy())
    return paired(*shares)


def _normalized(subject: Subject, model: Defended) -> list[str]:
    """Faults between the purified image and the classifier's first layer with weights."""
    classifier, images = model.classifier, subject.images
    inputs: dict[str, Tensor] = {}
    first = next((m for m in classifier.net.modules() if isinstance(m, nn.Conv2d | nn.Linear)), None)

    def reach(module: nn.Module, args: tuple[Tensor, ...]) -> None:  # what a hook returns would replace the input
        inputs.setdefault("reached", args[0])

    hooks = [classifier.register_forward_pre_hook(lambda module, args: inputs.update(given=args[0]))]
    if first is not None:
        hooks.append(first.register_forward_pre_hook(reach))
    try:
        with torch.no_grad():
            noise = streams(subject, images, Stage.CLEAN).draw(0)
            x_hat = model.purify(images.x, noise)
            inputs.clear()  # some purifiers call the classifier themselves
            model.classify(x_hat, noise)
    finally:
        for hook in hooks:
            hook.remove()
    given, reached = inputs["given"], inputs.get("reached")
    if float(given.min()) < -CLOSE or float(given.max()) > 1 + CLOSE:
        return [f"the classifier's input lies in [{float(given.min()):.2f}, {float(given.max()):.2f}], not [0, 1]"]
    once = _once(classifier, given)
    if reached is None or reached.shape != once.shape or classifier.mean is None:
        return []  # nothing to compare with: no mean and std, or the first layer gets no image
    off = float((reached.to(once) - once).abs().max())
    far = off > (0.05 if reached.dtype.itemsize < 4 else CLOSE) * float(once.abs().max())
    return [f"the first layer's input differs from (x - mean) / std by {off:.2g}: is it applied twice?"] if far else []


def _once(classifier: Classifier, x: Tensor) -> Tensor:
    """The image, resized and normalized once by the classifier's own size, mean and std."""
    if classifier.size is not None and x.shape[2:] != (classifier.size, classifier.size):
        size = (classifier.size, classifier.size)
        x = nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    if classifier.mean is None or classifier.std is None:
        return x
    return (x - classifier.mean) / classifier.std


CHECKS = (randomness, decisions)
QUICK = CHECKS
