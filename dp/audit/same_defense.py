"""Whether what is attacked is what is scored: every difference declared, and the same noise levels (check 19)."""

import numpy as np
import torch

from dp.audit.check import Finding, Subject, audited
from dp.audit.returned_images import differentiated_by_attack
from dp.audit.stages import Stage
from dp.defense.defended import Defended
from dp.evaluation.caveats import differences, mode_name
from dp.rng import Streams

START = 0.05  # share by which the first noise level may differ: discrete clocks round
GRID = 0.1  # of the first noise level: by how much a level may be off the other grid's at the same share of the way


@audited("same defense", needs="attack")
def same_defense(subject: Subject) -> Finding:
    """Check 19: hyperparameters, networks and gradient modes that differ are declared; every attacked purification goes
    by the noise levels of the scored one, in more or fewer steps, declared or not.
    """
    attacked, scored, _ = subject.arm
    taken = sorted({*differentiated_by_attack(subject), *_modes(attacked, scored)} - {()})
    claimed = {*subject.claims, *((mode,) for modes in subject.claims for mode in modes)}
    changed = differences(attacked, scored)
    silent = [difference for difference in changed if difference not in subject.declared]
    lines = [f"not declared: {line}" for line in silent]
    lines += [f"not declared: the gradient is {mode_name(modes)}'s" for modes in taken if modes not in claimed]
    lines += _networks(attacked, scored) + _levels(subject)
    known = [*map(str, changed)] + [f"the gradient is {mode_name(modes)}'s" for modes in taken]
    value = "; ".join(lines) or (f"declared: {', '.join(known)}" if known else "the same")
    count = f"{len(known)} differences"
    return Finding("same defense", value, "all declared, the same noise", "FAIL" if lines else "PASS", count, 0.0)


def _modes(attacked: Defended, scored: Defended) -> list[tuple[str, ...]]:
    """The gradient modes of the scored defense that are attacked in its place, by what they lack."""
    blind, bpda = attacked.undefended and not scored.undefended, attacked.bpda and not scored.bpda
    return [modes for modes, holds in ((("blind",), blind), (("bpda",), bpda)) if holds]


def _networks(attacked: Defended, scored: Defended) -> list[str]:
    """Networks of other weights; that the bare classifier has no denoiser is for `_modes`."""
    pairs = [
        ("denoiser", attacked.denoiser, scored.denoiser),
        ("classifier", attacked.classifier, scored.classifier),
        ("purifier network", attacked.own_network, scored.own_network),
    ]
    lines = []
    for name, first, second in pairs:
        if first is None or second is None or first is second:
            continue
        a, b = first.state_dict(), second.state_dict()
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            lines.append(f"not declared: another {name}")
    return lines


def _levels(subject: Subject) -> list[str]:
    """Attacked purifications that start at another noise level than the scored one, or go down another way."""
    scored, lines = _sigmas(subject, subject.arm.scored), []
    asked = {mode_name(modes): model for modes, model in differentiated_by_attack(subject).items() if modes}
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
            ends, wanted = (", ".join(f"{s:.3g}" for s in grid[-3:]) for grid in (sigmas, scored))
            lines.append(f"wrong schedule: the {what} ends at sigma {ends}, the scored one at {wanted}")
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
        rng = Streams(one.ids, subject.seed, Stage.LEVELS)
        model.purify(one.x, rng, on_step=lambda i, sigma, z, x0: levels.append(float(sigma)))
    return levels


CHECKS = (same_defense,)
QUICK = CHECKS
