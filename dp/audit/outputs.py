"""A check that a defense returns logits: no bounded, squashed or saturated outputs."""

import torch
from torch import Tensor

from dp.audit.check import Finding, Subject, audited, some, streams
from dp.audit.probes import gradient_probes, one_step
from dp.audit.reruns import percent
from dp.audit.stages import Stage
from dp.objectives import Loss, cross_entropy
from dp.statistics.intervals import wilson

SAMPLES = 5  # samples of every image
# Outputs pile up at a bound if this share of samples is at an end of the range, within `NEAR` of the largest width.
# Logits spread: on the digits at most 15 % are there. Of probabilities, 2p - 1 and tanh at least 94 % are.
PILED, NEAR = 0.4, 0.01
LEAST = 8  # different values below which their spread says nothing, as with few images and no noise
EQUAL = 0.2  # share of samples whose largest (or smallest) output may be the same number in several images
# Shares of samples whose loss is exactly 0: above the first WARN, above the second FAIL. In float32 the cross entropy
# is 0 from a width of 17 on, and so is the part of its gradient that lowers the right class. The digits have 0 %.
SATURATED = (0.25, 0.5)
LOGARITHMS = 1e-3  # the logarithm of the sum of probabilities is 0 within it


@audited("outputs", "outputs that are no logits: bounded, squashed or saturated", needs="nothing")
def outputs(subject: Subject) -> Finding:
    """Find a function between the logits and the outputs that hides their gradient. It looks at clean images.

    Three signs need no knowledge of the function. First, the outputs are bounded in width: the defense is right more
    often than the largest softmax probability of any sample allows (2p - 1, tanh, a high temperature). A classifier
    that is trained by cross entropy is right about as often as its probabilities say; robust training lowers the mean
    probability, but not the largest one below the accuracy. Second, outputs pile up at a bound: most widths or smallest
    outputs are nearly equal, or many samples have exactly the same largest or smallest output. Third, the loss of the
    attack is exactly 0 on most samples (a low temperature). The width of a sample is its largest output minus its
    smallest one.
    """
    images = subject.images
    with torch.no_grad():
        logits = subject.arm.scored.logits(images.x, streams(subject, images, Stage.FLAGS), SAMPLES)  # (S,B,K)
    widths = (logits.amax(dim=2) - logits.amin(dim=2)).flatten()
    broken = [*_bounded(logits, images.y), *_piled(logits), *_cut(logits)]
    zero = _zero_loss(subject, logits)
    words = f"the attack's loss is exactly 0 on {percent(zero)} of samples: saturated (temperature too low?)"
    broken += [words] if zero > SATURATED[1] else []
    doubtful = [words] if SATURATED[0] < zero <= SATURATED[1] else []
    status = "FAIL" if broken else "WARN" if doubtful else "PASS"
    value = "; ".join([*broken, *doubtful, f"widths {float(widths.min()):.3g} to {float(widths.max()):.3g}"])
    return Finding("outputs", value, "unbounded logits", status, f"{len(images.ids)} images, {SAMPLES} samples", 0.0)


def _bounded(logits: Tensor, y: Tensor) -> list[str]:
    """A fault if the defense is right more often than its largest probability of any sample allows."""
    right = float((logits.argmax(dim=2) == y).double().mean())
    largest = float(logits.double().softmax(dim=2).max())
    if wilson(right, len(y))[0] <= largest:
        return []
    cause = "bounded outputs (probabilities, tanh, temperature too high?)"
    return [f"right on {percent(right)} of samples, but no softmax probability exceeds {largest:.2f}: {cause}"]


def _piled(logits: Tensor) -> list[str]:
    """A fault if most samples have nearly the same width or smallest output, at the end of its range.

    Probabilities have most of their smallest outputs at 0, whether or not the largest ones are near 1. Largest outputs
    are left out, because those of logarithms of probabilities are near 0 and hide no gradient.
    """
    widths, low = (logits.amax(dim=2) - logits.amin(dim=2)).flatten(), logits.amin(dim=2).flatten()
    for name, ends, bound in (("widths", widths, widths.max()), ("smallest outputs", -low, low.min())):
        share = float((ends >= ends.max() - NEAR * widths.max()).double().mean())
        if len(ends.unique()) >= LEAST and share > PILED:
            return [f"{percent(share)} of {name} are nearly {float(bound):.3g}: outputs pile up at a bound"]
    return []


def _cut(logits: Tensor) -> list[str]:
    """A fault if the largest or the smallest output is the same number in many samples of several images.

    A largest output of 0 is right for logarithms of probabilities.
    """
    logarithms = bool((logits.logsumexp(dim=2).abs() < LOGARITHMS).all())
    ends = [(logits.amin(dim=2), logits.min())]
    ends += [] if logarithms else [(logits.amax(dim=2), logits.max())]
    for values, bound in ends:
        there = values == bound  # (S,B)
        share = float(there.double().mean())
        if int(there.any(dim=0).sum()) > 1 and share > EQUAL:
            return [f"{percent(share)} of samples have an output of exactly {float(bound):.3g}: outputs are cut"]
    return []


def _zero_loss(subject: Subject, logits: Tensor) -> float:
    """The share of samples whose loss is exactly 0. Of several parts of an attack, the smallest share."""
    images, losses = some(subject.images, 1), list[Loss]()
    for probe in gradient_probes(subject):
        query, _ = one_step(probe, images, subject.evaluation.threat, streams(subject, images, Stage.EOT))
        losses += [query.loss] if query is not None else []
    # The loss of one image, because a targeted loss knows its images.
    samples, y = logits[:, : len(images.ids)].flatten(0, 1), images.y.repeat(len(logits))
    shares = [_share(loss(samples, y)) for loss in losses]
    every = _share(cross_entropy(logits.flatten(0, 1), subject.images.y.repeat(len(logits))))
    return min([every, *shares])


def _share(values: Tensor) -> float:
    first = values if values.dim() == 1 else values[:, 0]
    return float((first == 0).double().mean())


CHECKS = (outputs,)
QUICK = CHECKS
