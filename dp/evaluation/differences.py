"""What is attacked and what is scored, in words, and every difference between the two."""

import functools
from typing import Any

from dp.attacks.base import Attack
from dp.attacks.bpda import BPDA
from dp.attacks.pgd_eot import PGD
from dp.attacks.through import WORDS, Through
from dp.attacks.union import Union
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
    if isinstance(attack, Union):
        return set().union(*(gradients(part, grad) for part in attack.attacks.values()))
    own = getattr(attack, "grad", "full")
    if own not in ("full", "values", grad) and grad != "full":
        own = f"{grad}+{own}"
    here = grad if own == "full" else own
    return gradients(attack.attack, here) if isinstance(attack, Through) else {here}


def short_steps(attack: Attack, threat: ThreatModel) -> list[str]:
    """Attacks whose steps cannot take a point to every place of the ball, whatever the gradient."""
    if isinstance(attack, Union):
        return [line for part in attack.attacks.values() for line in short_steps(part, threat)]
    if isinstance(attack, Through):
        return short_steps(attack.attack, threat)
    size, in_units = (
        getattr(attack, "step_size", None),
        threat.norm == "linf" or getattr(attack, "l2_step", "") != "sign",
    )
    if not isinstance(attack, PGD | BPDA) or size is None or not in_units:
        return []
    width = 2 * threat.eps if getattr(attack, "random_start", False) else threat.eps
    if attack.iterations * size >= width:
        return []
    length = (
        f"{type(attack).__name__}'s {attack.iterations} steps of {size} are shorter than the {width:.3g} they may need"
    )
    return [f"{length}: raise its step_size, or set it to null"]


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
    eot, draws = (votes, "the draws that score") if known_draws else (attack.eot, f"{attack.eot} draws of its own")
    if not attack.steps or eot == votes == 1:
        return ""
    return f"the attack goes by {getattr(attack, 'criterion', 'the mean over')} {draws}, the verdict by {verdict}"


def changes(mine: Any, theirs: Any, name: str) -> list[str]:
    """`key mine instead of theirs`, for every leaf that differs."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return [
            line
            for key in sorted({*mine, *theirs})
            for line in changes(mine.get(key), theirs.get(key), f"{name}.{key}")
        ]
    return [] if mine == theirs else [f"{name} {mine} instead of {theirs}"]
