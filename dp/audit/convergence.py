"""Checks that the attack works: its loss by iteration, AutoAttack's warnings, and the indicators of attack failure."""

import sys
from types import CodeType

import torch
from torch import Tensor

from dp.audit.check import Finding, Subject, audited, differentiated, not_applicable, some, streams, unreachable
from dp.audit.probes import cosine, gradient_probes, main, one_step, queried
from dp.audit.stages import Stage
from dp.audit.trajectory import RISING, Trajectory, again, beyond, loss_curves, trajectory, unfinished
from dp.objectives import dlr
from dp.subset import Subset

FLAT = 0.02  # an attack that works raises the loss by at least this share of its first value
RANDOM = 1e-4  # spread of logits above which AutoAttack calls a defense random
NEARBY = 1e-3  # distance per pixel, in [0,1] units, at which a gradient should still point the same way
TURNED = 0.5  # a cosine below it means that the gradient has turned
MISSING = (0.1, 0.5)  # shares of gradients that are exactly zero: above the first WARN, above the second FAIL


@audited("loss", "the loss by iteration", needs="attack")
def loss(subject: Subject) -> Finding:
    """Measure the loss of the attack's iterates (see `loss_curves`) with samples that the attack has not used.

    If the loss still rises at the end, the attack has not converged. If it is flat from the start, beyond noise and a
    share of `FLAT`, the gradient is masked, unless all images are broken at the start.
    """
    if subject.arm.attack.batch_bound:
        return not_applicable("loss", "a package's attack runs as one step")
    path = trajectory(subject)
    current, best = loss_curves(path)
    rising, gain = unfinished(path)
    start, rise = float(current[0].mean()), best[-1] - current[0]
    value = f"{start:.2f} -> {float(best[-1].mean()):.2f}, of which +{gain:.2g} in the last fifth"
    if float(path.moved.max()) == 0:
        value, status = f"{value}: the attack never moves", "FAIL"
    elif start < 0 and not (beyond(rise) and float(rise.mean()) > -FLAT * start):
        value, status = f"{value}: flat from the start, masked", "WARN"
    elif rising:
        value, status = f"{value}: still rising, not converged", "WARN"
    else:
        status = "PASS"
    wrong = (path.margins > 0).double().mean(dim=(1, 2))
    curve = {
        "x": path.steps,
        "loss": current.mean(dim=1).tolist(),
        "best": best.mean(dim=1).tolist(),
        "wrong": wrong.tolist(),
    }
    threshold = f"at most {RISING:g} of the rise in the last fifth"
    return Finding("loss", value, threshold, status, _count(path), 0.0, curve)


def _count(path: Trajectory) -> str:
    return f"{len(path.x_adv)} images, {path.steps[-1]} steps, {len(path.returned)} samples"


@audited("flags", "the warnings of AutoAttack", needs="nothing")
def flags(subject: Subject) -> Finding:
    """Repeat the warnings of AutoAttack (Croce and Hein 2020).

    They are: a random defense and only one sample per gradient; probabilities in place of logits; zero gradients of the
    difference of logits ratio; gradients taken inside the forward pass; too few classes for a loss. Its last warning,
    that Square is stronger, belongs to the black-box check.
    """
    images, scored, attack = some(subject.images, 8), subject.arm.scored, subject.arm.attack
    with torch.no_grad():
        logits = scored.logits(images.x, streams(subject, images, Stage.FLAGS), 5)  # (5,B,K)
    classes = logits.shape[2]
    broken, doubtful = [], []
    if bool((logits >= 0).all()) and bool(((logits.sum(dim=2) - 1).abs() < 1e-3).all()):
        broken.append("probabilities instead of logits")
    is_random = float((logits - logits[:1]).abs().max()) > RANDOM and not subject.evaluation.known_draws
    if is_random and attack.steps and attack.samples == 1:
        doubtful.append("random output and EOT 1")
    needed = max([probe.attack.least_classes for probe in gradient_probes(subject)], default=2)
    broken += [f"{classes} classes for a loss that needs {needed}"] if classes < needed else []
    if _differentiates(subject, images):
        doubtful.append("gradients taken inside forward")
    if unreachable(subject):
        broken.append("no gradient")
    elif classes >= 3 and attack.steps and subject.claimed:
        model, rng = (
            differentiated(subject, () if () in subject.claimed else subject.claimed[0]),
            streams(subject, images, Stage.FLAGS),
        )
        _, grad = model.loss_gradient(images.x, images.y, rng, 1, dlr)
        zero = int((grad.flatten(1).abs().amax(dim=1) == 0).sum())
        doubtful += [f"zero DLR gradient on {zero} images"] if zero else []
    status = "FAIL" if broken else "WARN" if doubtful else "PASS"
    value = ", ".join(broken + doubtful) or "none"
    return Finding("flags", value, "none", status, f"{len(images.ids)} images, 5 samples", 0.0)


def _differentiates(subject: Subject, images: Subset) -> bool:
    """True if one forward pass, without a graph, calls autograd for gradients."""
    called: set[CodeType] = set()
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, arg: called.add(frame.f_code) if event == "call" else None)
    try:
        with torch.no_grad():
            subject.arm.scored.logits(images.x[:1], streams(subject, some(images, 1), Stage.FLAGS), 1)
    finally:
        sys.setprofile(before)
    return bool(called & {torch.autograd.grad.__code__, torch.autograd.backward.__code__})


@audited("indicators", "indicators of attack failure (Pintor et al. 2022)", needs="attack")
def indicators(subject: Subject) -> Finding:
    """Compute indicators of attack failure, after Pintor et al. (2022, arXiv 2106.09947).

    They are: gradients that are exactly zero; gradients that turn within `NEARBY` of a point under the same noise; an
    iterate that was worse for the defense than the returned point; an optimization that stopped too early; success on
    the attacked defense that the scored one does not share. All but the second come from the attack's trajectory, with
    samples that the attack has not used.
    """
    if subject.arm.attack.batch_bound:
        return not_applicable("indicators", "a package's attack runs as one step")
    path = trajectory(subject)
    silent = (path.best > 0).double().mean(dim=1) - (path.returned > 0).double().mean(dim=1)  # (R,)
    turn, transfer = _cosine_nearby(subject), _transfer_loss(subject, path)
    zero = float(path.zero.nan_to_num().mean())  # 0 if the attack takes no gradient
    holds = {
        "unavailable gradients": zero > MISSING[0],
        "noisy gradients": turn is not None and turn < TURNED,
        "silent success": beyond(silent),
        "incomplete optimization": unfinished(path)[0],
        "transfer failure": transfer is not None and beyond(transfer),
    }
    shares = [
        f"zero gradients {zero:.2f}",
        f"cosine nearby {'-' if turn is None else f'{turn:.2f}'}",
        f"missed successes {float(silent.mean()):.2f}",
    ]
    named = ", ".join(name for name, yes in holds.items() if yes) or "none"
    status = "FAIL" if zero > MISSING[1] else "WARN" if any(holds.values()) else "PASS"
    curve = {"x": list(range(len(holds))), "holds": [float(yes) for yes in holds.values()]}
    return Finding("indicators", f"{named} ({', '.join(shares)})", "none", status, _count(path), 0.0, curve)


def _cosine_nearby(subject: Subject) -> float | None:
    """Mean cosine between the attack's first gradient and the gradient at a nearby point, with the same noise.

    The mean is over images with a gradient that is not zero. None if there is none.
    """
    if not gradient_probes(subject):
        return None
    probe, images = main(gradient_probes(subject)), some(subject.images, 8)
    rng = streams(subject, images, Stage.ASIDE)
    query, _ = one_step(probe, images, subject.evaluation.threat, rng.draw(0))
    if query is None:
        return None
    model = queried(probe, query)
    offset = torch.where(rng.draw(1).uniform_like(query.x) < 0.5, -NEARBY, NEARBY).to(query.x)
    first, second = (
        model.loss_gradient(x, images.y, rng.draw(2), 1, query.loss, query.auxiliary)[1]
        for x in (query.x, query.x + offset)
    )
    some_gradient = first.flatten(1).abs().amax(dim=1) > 0
    return float(cosine(first, second)[some_gradient].mean()) if bool(some_gradient.any()) else None


def _transfer_loss(subject: Subject, path: Trajectory) -> Tensor | None:
    """(R,): for each sample, the share of wrong images on the attacked defense minus that on the scored defense.

    Of several approximate gradient modes, the one with the largest share counts. None for exact gradients.
    """
    if not subject.claimed or subject.claims_exact:
        return None
    images, shares = subject.images, []
    for modes in subject.claimed:
        model, wrong = differentiated(subject, modes), []
        for k in range(0, len(images.ids), subject.evaluation.lanes):
            batch = images.select(slice(k, k + subject.evaluation.lanes))
            x = path.x_adv[k : k + subject.evaluation.lanes]
            with torch.no_grad():
                logits = model.logits(x, streams(subject, batch, again(subject)), len(path.returned))
            wrong.append((logits.argmax(dim=2) != batch.y).cpu())
        shares.append(torch.cat(wrong, dim=1).double().mean(dim=1))
    top = max(shares, key=lambda share: float(share.mean()))
    return top - (path.returned > 0).double().mean(dim=1)


CHECKS = (loss, flags, indicators)
QUICK = (flags,)
