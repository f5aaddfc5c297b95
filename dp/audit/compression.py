"""An indicator: how much of a perturbation survives the purification under fixed noise (arXiv 2505.22839)."""

import torch
from torch import Tensor

from dp.audit.answers import SAMPLES, answer
from dp.audit.check import Finding, Subject, audited, not_applicable
from dp.audit.reruns import own
from dp.audit.stages import Stage
from dp.rng import Streams


@audited("compression", "how much of a perturbation survives purification under fixed noise", needs="nothing")
def compression(subject: Subject) -> Finding:
    """Measure the compression rate |purify(x + d) - purify(x)|_2 / |d|_2, with the same noise in both calls.

    Liu and Wei (2025, arXiv 2505.22839) find that the robustness of a purification with fixed noise goes with this
    rate, and that no gradient is needed to measure it. A small rate speaks for the defense, and 1 is what the identity
    has. The value gives the median over images for random noise of the threat model and for the attack's perturbations.
    A robust accuracy that is high although the attack's perturbations survive needs another explanation. The check has
    no bound, because a rate says nothing about the classifier: it is INFO.
    """
    images, threat = subject.images, subject.evaluation.threat
    if subject.arm.scored.undefended:
        return not_applicable("compression", "nothing is purified")
    streams = Streams(images.ids, subject.seed, Stage.COMPRESSION, subject.evaluation.rng)
    clean = _purified(subject, images.x)
    points = {"random noise": threat.noise(images.x, streams.draw(SAMPLES))}
    if subject.arm.attack.steps:
        points["the attack's perturbation"] = own(subject)[0].x_adv.to(images.x)
    rates = {name: _rate(_purified(subject, x) - clean, x - images.x) for name, x in points.items()}
    value = "; ".join(f"{rate:.2f} of {name} survives" for name, rate in rates.items())
    curve = {"x": list(range(len(rates))), "rate": list(rates.values())}
    return Finding("compression", value, "-", "INFO", f"{len(images.ids)} images, {SAMPLES} samples", 0.0, curve)


def _purified(subject: Subject, x: Tensor) -> Tensor:
    """(S,B,C,H,W): purified images, always with the same noise."""
    rng = Streams(subject.images.ids, subject.seed, Stage.COMPRESSION, subject.evaluation.rng)
    return answer(subject.arm.scored, x, rng).x_hat


def _rate(change: Tensor, perturbation: Tensor) -> float:
    """The median over images of the mean ratio of lengths. Images without a perturbation are left out.

    The lengths are root mean squares, so that purified images of another size can be compared.
    """
    lengths = perturbation.flatten(1).square().mean(dim=1).sqrt()  # (B,)
    moved = change.flatten(2).square().mean(dim=2).sqrt().mean(dim=0)  # (B,)
    perturbed = lengths > 0
    return float(torch.median(moved[perturbed] / lengths[perturbed])) if bool(perturbed.any()) else 0.0


CHECKS = (compression,)
QUICK = CHECKS
