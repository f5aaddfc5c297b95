"""A check that an attack steps along its gradient."""

from dataclasses import dataclass

from torch import Tensor

from dp.audit.check import Finding, Subject, audited, not_applicable, some, streams
from dp.audit.probes import cosine, gradient_probes, one_step
from dp.audit.stages import Stage
from dp.threat_models.ball import BALLS, ThreatModel

ALONG = 0.99  # smallest cosine of an l2 step, or share of pixels of a linf step, along the gradient


@dataclass(frozen=True)
class _Boundless(ThreatModel):
    """A threat model without a projection, so that a step stays as the attack made it."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Returns x_adv unchanged."""
        return x_adv


@audited("step", "whether the attack steps along its gradient")
def step(subject: Subject) -> Finding:
    """Compare the first step of every part of the attack with the gradient that the part got.

    In l2 the value is the cosine between the two. In linf it is the share of pixels that move by the gradient's sign.
    Nothing is projected, and images are moved halfway to gray, so that the box does not cut a step. A step in l2 that
    moves all pixels equally is a sign step, which the projection on the l2 ball would shorten.
    """
    threat, probes = subject.evaluation.threat, gradient_probes(subject)
    if threat.norm not in BALLS or not probes:
        ball = threat.norm in BALLS
        why = "a package makes its own steps" if ball else f"steps under {threat.norm} do not follow pixel gradients"
        return not_applicable("step", why)
    images = some(subject.images, 4)
    images = images._replace(x=0.25 + 0.5 * images.x)
    lines, statuses = [], []
    for probe in probes:
        rng = streams(subject, images, Stage.STEP)
        query, after = one_step(probe, images, _Boundless(threat.norm, threat.eps), rng)
        line, status = "takes no gradient", "FAIL"
        if query is not None:
            line, status = _along(after - query.x, query.gradient, threat.norm)
        lines.append(f"{probe.name} {line}")
        statuses.append(status)
    status = max(statuses, key=("PASS", "WARN", "FAIL").index)
    threshold = f">= {ALONG:g}"
    return Finding("step", ", ".join(lines), threshold, status, f"{len(images.ids)} images, 1 step each", 0.0)


def _along(moved: Tensor, grad: Tensor, norm: str) -> tuple[str, str]:
    """The comparison in words, and its status, over the images whose gradient is not zero."""
    nonzero = grad.flatten(1).abs().amax(dim=1) > 0
    if not bool(nonzero.any()):
        return "zero gradient", "FAIL"
    moved, grad = moved[nonzero].flatten(1), grad[nonzero].flatten(1)
    if not bool(moved.abs().amax() > 0):
        return "does not move", "FAIL"
    if norm == "linf":
        value = float((moved.sign() == grad.sign())[grad != 0].double().mean())
        return f"{value:.2f} of pixels", "PASS" if value >= ALONG else "WARN" if value > 0.5 else "FAIL"
    value, sizes = float(cosine(moved, grad).mean()), moved.abs()
    largest = sizes.amax(dim=1, keepdim=True)
    equal = float(((sizes - largest).abs() <= 1e-3 * largest)[grad != 0].double().mean())
    line = f"cosine {value:.2f}" + (", a sign step" if equal >= ALONG and value < ALONG else "")
    return line, "PASS" if value >= ALONG else "WARN" if value > 0 else "FAIL"
