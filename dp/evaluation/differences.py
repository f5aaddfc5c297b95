"""What is attacked and what is scored, in words, and every difference between the two."""

import functools
from typing import Any

from dp.attacks.base import FULL, VALUES, Attack
from dp.attacks.through import WORDS
from dp.defense.defended import Defended
from dp.threat_models.ball import ThreatModel


def bound(purify: Any) -> dict[str, Any]:
    """The hyperparameters that a purifier is bound to."""
    return bound(purify.func) | purify.keywords if isinstance(purify, functools.partial) else {}


def through(attacked: Defended, scored: Defended, grad: str) -> str:
    """What the gradient of `attacked` is the gradient of."""
    if attacked is scored:
        return "the scored defence itself"
    changed = hyperparameters(attacked, scored)
    return f"the scored defence by {WORDS[grad]}" + (f" ({', '.join(changed)})" if changed else "")


def hyperparameters(attacked: Defended, scored: Defended) -> list[str]:
    """`name=attacked instead of scored`, for every hyperparameter of the purifier that differs."""
    mine, theirs = bound(attacked.purifier), bound(scored.purifier)
    if not mine:  # no purification at all
        return []
    changed = [k for k in sorted({*mine, *theirs}) if mine.get(k) != theirs.get(k)]
    return [f"{k}={mine.get(k)} instead of {theirs[k]}" if k in theirs else f"{k}={mine[k]}" for k in changed]


def gradients(attack: Attack, grad: str) -> set[str]:
    """The views of the defence that an attack differentiates, or `values`; `grad` is the threat model's."""
    found = set()
    for part in attack.parts():
        modes = [m for m in (grad, *part.modes, part.attack.gradient) if m != FULL]
        path = [m for k, m in enumerate(modes) if k == 0 or m != modes[k - 1]]
        found.add(VALUES if part.attack.gradient == VALUES else "+".join(path) or FULL)
    return found


def short_steps(attack: Attack, threat: ThreatModel) -> list[str]:
    """The parts of the attack whose steps cannot cover the ball, whatever the gradient, in words."""
    lines = []
    for name, leaf, _ in attack.parts():
        reach, width = leaf.reach(threat), leaf.width(threat)
        if reach is not None and reach < width:
            who = f"the steps of {name or type(leaf).__name__} cover {reach:.3g} together"
            lines.append(f"{who}, less than the {width:.3g} they may need: raise its step_size, or set it to null")
    return lines


def differences(attacked: Defended, scored: Defended, attack: Attack, grad: str) -> list[str]:
    """Every difference between the defence that the attack sees and the one that is judged; empty only where there is
    none.
    """
    found = []
    seen = gradients(attack, grad)
    views = sorted(seen - {"full", "values"})
    if views and attack.steps:
        who = "some attacks' gradients are" if seen - set(views) else "the gradient is"
        found.append(f"{who} not the scored defence's: {', '.join(views)}")
    found += hyperparameters(attacked, scored)
    if bound(scored.purifier).get("clamp") == "straight_through":
        found.append("the last clamp passes gradients that it would stop (clamp=straight_through)")
    return found


def criteria(attack: Attack, verdict: str, votes: int, known_draws: bool = False) -> str:
    """What the attack goes by and what decides, where they are not the same; else nothing. `verdict`: the deciding rule
    in words; `votes`: its draws.
    """
    own = f"{attack.samples} samples of its own"
    samples, which = (votes, "the samples that score") if known_draws else (attack.samples, own)
    if not attack.steps or samples == votes == 1:
        return ""
    return f"the attack goes by {attack.criterion} {which}, the verdict by {verdict}"


def changes(mine: Any, theirs: Any, name: str) -> list[str]:
    """`key mine instead of theirs`, for every leaf that differs."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return [
            line
            for key in sorted({*mine, *theirs})
            for line in changes(mine.get(key), theirs.get(key), f"{name}.{key}")
        ]
    return [] if mine == theirs else [f"{name} {mine} instead of {theirs}"]
