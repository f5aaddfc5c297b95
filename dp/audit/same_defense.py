"""A check that the attacked defense is the scored one: every difference is declared, and noise levels are the same."""

import numpy as np
import torch
from torch import Tensor

from dp.audit.check import Finding, Subject, audited, plural
from dp.audit.returned_images import differentiated_by_attack
from dp.audit.stages import Stage
from dp.defense.defended import Defended
from dp.evaluation.caveats import differences, mode_name
from dp.output.report import difference_words
from dp.rng import Streams

START = 0.05  # relative tolerance of the first noise level, because discrete networks round it
SAME = 1e-3  # relative tolerance of equal levels
GRID = 0.1  # tolerance of the other noise levels, relative to the first one


@audited("same defense", "every difference between attacked and scored", needs="attack")
def same_defense(subject: Subject) -> Finding:
    """Check that the run declares every difference of hyperparameters, networks and gradient modes.

    Declared or not, every attacked purification must follow the noise levels of the scored one, in more or fewer steps.
    """
    attacked, scored, _ = subject.arm
    taken = sorted({*differentiated_by_attack(subject), *_modes(attacked, scored)} - {()})
    claimed = {*subject.claims, *((mode,) for modes in subject.claims for mode in modes)}
    changed = differences(attacked, scored)
    lines = [f"not declared: {difference_words(*one)}" for one in changed if one not in subject.declared]
    lines += [f"not declared: the gradient is {mode_name(modes)}'s" for modes in taken if modes not in claimed]
    lines += _networks(attacked, scored) + _levels(subject)
    if lines and changed and changed[0].key == "purifier":
        lines = [f"another purifier is attacked: {changed[0].attacked} instead of {changed[0].scored}", *lines]
    listed = [*(difference_words(*one) for one in changed)] + [
        f"the gradient is {mode_name(modes)}'s" for modes in taken
    ]
    value = "; ".join(lines) or (f"declared: {', '.join(listed)}" if listed else "the same")
    goal, count = "all differences declared; the same noise levels", plural(len(listed), "difference")
    return Finding("same defense", value, goal, "FAIL" if lines else "PASS", count, 0.0)


def _modes(attacked: Defended, scored: Defended) -> list[tuple[str, ...]]:
    """The gradient modes that the attacked defense has and the scored one has not: blind, BPDA."""
    blind, bpda = attacked.undefended and not scored.undefended, attacked.bpda and not scored.bpda
    return [modes for modes, holds in ((("blind",), blind), (("bpda",), bpda)) if holds]


def _networks(attacked: Defended, scored: Defended) -> list[str]:
    """A line for each network whose weights differ. A missing denoiser is no such difference; see `_modes`."""
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
        if a.keys() != b.keys() or not all(_equal(a[key], b[key]) for key in a):
            lines.append(f"not declared: another {name}")
    return lines


def _equal(first: Tensor, second: Tensor) -> bool:
    """True if two tensors are equal, or would be if both had the narrower of their dtypes."""
    narrow = min(first.dtype, second.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(first.to(narrow), second.to(narrow))


def _levels(subject: Subject) -> list[str]:
    """A line for each attacked purification whose noise levels are not those of the scored one."""
    scored, lines = _sigmas(subject, subject.arm.scored), []
    modes_taken = {mode_name(modes): model for modes, model in differentiated_by_attack(subject).items() if modes}
    for name, model in {"attacked": subject.arm.attacked, **modes_taken}.items():
        sigmas, what = _sigmas(subject, model), "surrogate" if name == "attacked" else name
        if not sigmas or not scored or not scored[0]:  # a method without noise begins at level 0
            continue
        top = scored[0]
        if abs(sigmas[0] / top - 1) > START:
            lines.append(f"wrong schedule: the {what} starts at sigma {sigmas[0]:.3g}, the scored one at {top:.3g}")
        elif max(sigmas) > max(scored) * (1 + START):
            lines.append(
                f"wrong schedule: the {what} reaches sigma {max(sigmas):.3g}, the scored one {max(scored):.3g}"
            )
        elif _off(sigmas, scored) > GRID:
            ends, wanted = (", ".join(f"{s:.3g}" for s in grid[-3:]) for grid in (sigmas, scored))
            lines.append(f"wrong schedule: the {what} ends at sigma {ends}, the scored one at {wanted}")
    return lines


def _off(first: list[float], second: list[float]) -> float:
    """The largest difference between two grids of noise levels, relative to the highest level.

    Both grids go down to 0. The coarser one is compared with the finer one at the same fractions of its steps. Levels
    that are repeated count once. Of a method of several rounds the last of its deepest rounds is compared. The
    difference is 0 if the coarser grid begins at the same level and has levels of the finer one alone, as where a
    method of two stages keeps both.
    """
    rounds = [_last_deepest(grid) for grid in (first, second)]
    coarse, fine = sorted(([*sorted({*grid}, reverse=True), 0.0] for grid in rounds), key=len)
    shared = all(min(abs(level - other) for other in fine) <= SAME * level for level in coarse)
    if shared and abs(coarse[0] - fine[0]) <= SAME * fine[0]:
        return 0.0
    expected = np.interp(np.linspace(0, 1, len(coarse)), np.linspace(0, 1, len(fine)), fine)
    return float(np.abs(expected - coarse).max()) / coarse[0]


def _last_deepest(sigmas: list[float]) -> list[float]:
    """The levels from the last call at the highest one on: of a chain that only falls, all of them."""
    return sigmas[len(sigmas) - 1 - sigmas[::-1].index(max(sigmas)) :]


def _sigmas(subject: Subject, model: Defended) -> list[float]:
    """The noise levels of one purification, in order. Empty if the purifier does not call `on_step`."""
    one, levels = subject.images.select(slice(0, 1)), []
    with torch.no_grad():
        rng = Streams(one.ids, subject.seed, Stage.LEVELS, subject.evaluation.rng)
        model.purify(one.x, rng, on_step=lambda i, sigma, z, x0: levels.append(float(sigma)))
    return levels


CHECKS = (same_defense,)
QUICK = CHECKS
