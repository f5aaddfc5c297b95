"""Whether an attack goes where its gradient points."""

from dataclasses import dataclass

from torch import Tensor

from dp.audit.check import Finding, Subject, audited, not_applicable, some, streams
from dp.audit.probes import cosine, gradient_probes, one_step
from dp.audit.stages import Stage
from dp.threat_models.ball import BALLS, ThreatModel

ALONG = 0.99  # least cosine of an l2 step, or share of pixels of a linf step, with the gradient


@dataclass(frozen=True)
class _Boundless(ThreatModel):
    """Lets every step through, so that it can be seen."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        return x_adv


@audited("step")
def step(subject: Subject) -> Finding:
    """The first step of every part goes along the gradient that it was given: in l2 the cosine between the two, in linf
    the share of pixels that move by its sign. Nothing is projected, and images are drawn to the gray by half.

    A step in l2 that moves all pixels equally is a sign step, which the l2 ball cuts short.
    """
    threat, probes = subject.evaluation.threat, gradient_probes(subject)
    if threat.norm not in BALLS or not probes:
        why = (
            "a package makes its steps itself" if threat.norm in BALLS else f"steps of pixels are none in {threat.norm}"
        )
        return not_applicable("step", why)
    images = some(subject.images, 4)
    images = images._replace(x=0.25 + 0.5 * images.x)
    lines, verdicts = [], []
    for probe in probes:
        rng = streams(subject, images, Stage.STEP)
        query, after = one_step(probe, images, _Boundless(threat.norm, threat.eps), rng)
        line, verdict = "asks for no gradient", "FAIL"
        if query is not None:
            line, verdict = _along(after - query.x, query.gradient, threat.norm)
        lines.append(f"{probe.name} {line}")
        verdicts.append(verdict)
    verdict = max(verdicts, key=("PASS", "WARN", "FAIL").index)
    threshold = f">= {ALONG:g}"
    return Finding("step", ", ".join(lines), threshold, verdict, f"{len(images.ids)} images, 1 step each", 0.0)


def _along(moved: Tensor, grad: Tensor, norm: str) -> tuple[str, str]:
    """In words and as a verdict, over the images that have a gradient."""
    there = grad.flatten(1).abs().amax(dim=1) > 0
    if not bool(there.any()):
        return "zero gradient", "FAIL"
    moved, grad = moved[there].flatten(1), grad[there].flatten(1)
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
