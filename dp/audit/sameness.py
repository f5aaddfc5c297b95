"""Whether what is attacked is what is scored: every difference declared, and the same noise levels (evaluation.md
section 3, check 19).
"""

import torch

from dp.audit import Finding, Subject
from dp.audit.results import views
from dp.audit.runs import skipped, timed
from dp.defense import Defended
from dp.differences import hyperparameters
from dp.rng import Streams

START = 0.05  # share by which the first noise level may differ: discrete clocks round


@timed
def same_defence(subject: Subject) -> Finding:
    """Check 19: hyperparameters, networks and views that differ are declared; every purification that is attacked
    starts at the noise level of the scored one, declared or not.
    """
    attacked, scored, attack = subject.arm
    if not attack.steps:
        return skipped("same defence", "no attack")
    found = hyperparameters(attacked, scored)
    found += [f"the gradient is {name}'s" for name in views(subject) if name != "full"]
    declared, lines = [*subject.declared, subject.claims], []
    for line in found:
        named = line.removeprefix("the gradient is ").removesuffix("'s") if line.startswith("the gradient") else line
        if not any(named in said for said in declared):
            lines.append(f"not declared: {line}")
    lines += _networks(attacked, scored) + _levels(subject)
    value = "; ".join(lines) or (f"declared: {', '.join(found)}" if found else "the same")
    count = f"{len(found)} differences"
    return Finding("same defence", value, "all declared, the same noise", "FAIL" if lines else "PASS", count, 0.0)


def _networks(attacked: Defended, scored: Defended) -> list[str]:
    """Networks of other weights; the bare classifier has no denoiser, which the hyperparameters' views declare."""
    pairs = [("denoiser", attacked.denoiser, scored.denoiser), ("classifier", attacked.classifier, scored.classifier)]
    lines = []
    for name, mine, theirs in pairs:
        if mine is None or theirs is None or mine is theirs:
            continue
        a, b = mine.state_dict(), theirs.state_dict()
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            lines.append(f"not declared: another {name}")
    return lines


def _levels(subject: Subject) -> list[str]:
    """Attacked purifications that start at another noise level than the scored one."""
    scored, lines = _sigmas(subject, subject.arm.scored), []
    for name, model in {"attacked": subject.arm.attacked, **views(subject)}.items():
        sigmas = _sigmas(subject, model)
        if sigmas and scored and abs(sigmas[0] / scored[0] - 1) > START:
            what = "surrogate" if name == "attacked" else name
            lines.append(
                f"wrong schedule: the {what} starts at sigma {sigmas[0]:.3g}, the scored one at {scored[0]:.3g}"
            )
    return lines


def _sigmas(subject: Subject, model: Defended) -> list[float]:
    """The noise levels of one purification, where it tells them."""
    one, levels = subject.images.select(slice(0, 1)), []
    with torch.no_grad():
        rng = Streams(one.ids, subject.seed, "audit-levels")
        model.purify(one.x, rng, on_step=lambda i, sigma, z, x0: levels.append(float(sigma)))
    return levels


CHECKS = (same_defence,)
QUICK = CHECKS
