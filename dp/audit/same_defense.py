"""Whether what is attacked is what is scored: every difference declared, and the same noise levels (evaluation.md
section 3, check 19).
"""

import numpy as np
import torch

from dp.audit.check import Finding, Subject, audited
from dp.audit.returned_images import views
from dp.defense.defended import Defended
from dp.evaluation.differences import hyperparameters
from dp.rng import Streams

START = 0.05  # share by which the first noise level may differ: discrete clocks round
GRID = 0.1  # of the first noise level: by how much a level may be off the other grid's at the same share of the way


@audited("same defence", needs="attack")
def same_defence(subject: Subject) -> Finding:
    """Check 19: hyperparameters, networks and views that differ are declared; every purification that is attacked goes
    by the noise levels of the scored one, in more or fewer steps, declared or not.
    """
    attacked, scored, _ = subject.arm
    seen = sorted({*views(subject), *_views(attacked, scored)} - {"full"})
    found = hyperparameters(attacked, scored)
    lines = [f"not declared: {line}" for line in found if line not in subject.declared]
    said = {name for claim in subject.claims.split(", ") for name in (claim, *claim.split("+"))}
    lines += [f"not declared: the gradient is {name}'s" for name in seen if name not in said]
    found += [f"the gradient is {name}'s" for name in seen]
    lines += _networks(attacked, scored) + _levels(subject)
    value = "; ".join(lines) or (f"declared: {', '.join(found)}" if found else "the same")
    count = f"{len(found)} differences"
    return Finding("same defence", value, "all declared, the same noise", "FAIL" if lines else "PASS", count, 0.0)


def _views(attacked: Defended, scored: Defended) -> list[str]:
    """The views of the scored defence that are attacked in its place, by what they lack."""
    blind, bpda = attacked.denoiser is None and scored.denoiser is not None, attacked.identity and not scored.identity
    return [name for name, here in (("blind", blind), ("bpda", bpda)) if here]


def _networks(attacked: Defended, scored: Defended) -> list[str]:
    """Networks of other weights; that the bare classifier has no denoiser is for `_views`."""
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
    """Attacked purifications that start at another noise level than the scored one, or go down another way."""
    scored, lines = _sigmas(subject, subject.arm.scored), []
    asked = {name: model for name, model in views(subject).items() if name != "full"}
    for name, model in {"attacked": subject.arm.attacked, **asked}.items():
        sigmas, what = _sigmas(subject, model), "surrogate" if name == "attacked" else name
        if not sigmas or not scored:
            continue
        top = scored[0]
        if abs(sigmas[0] / top - 1) > START:
            lines.append(f"wrong schedule: the {what} starts at sigma {sigmas[0]:.3g}, the scored one at {top:.3g}")
        elif max(sigmas) > max(scored) * (1 + START):
            lines.append(f"wrong schedule: the {what} goes up to sigma {max(sigmas):.3g} of at most {max(scored):.3g}")
        elif _off(sigmas, scored) > GRID:
            mine, theirs = (", ".join(f"{s:.3g}" for s in grid[-3:]) for grid in (sigmas, scored))
            lines.append(f"wrong schedule: the {what} ends at sigma {mine}, the scored one at {theirs}")
    return lines


def _off(first: list[float], second: list[float]) -> float:
    """Largest distance of a level of the coarser grid from the finer one at the same share of the way to 0, over the
    highest level; levels that come again count once.
    """
    coarse, fine = sorted(([*sorted({*grid}, reverse=True), 0.0] for grid in (first, second)), key=len)
    there = np.interp(np.linspace(0, 1, len(coarse)), np.linspace(0, 1, len(fine)), fine)
    return float(np.abs(there - coarse).max()) / coarse[0]


def _sigmas(subject: Subject, model: Defended) -> list[float]:
    """The noise levels of one purification, where it tells them."""
    one, levels = subject.images.select(slice(0, 1)), []
    with torch.no_grad():
        rng = Streams(one.ids, subject.seed, "audit-levels")
        model.purify(one.x, rng, on_step=lambda i, sigma, z, x0: levels.append(float(sigma)))
    return levels


CHECKS = (same_defence,)
QUICK = CHECKS
