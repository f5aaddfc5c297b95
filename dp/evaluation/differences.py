"""What is attacked and what is scored, in words, and every difference between the two."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from dp.attacks.base import FULL, VALUES, Attack
from dp.attacks.through import WORDS
from dp.defense.defended import Defended, unbound
from dp.threat_models.ball import ThreatModel


def bound(purify: Any) -> dict[str, Any]:
    """The hyperparameters that a purifier is bound to."""
    return bound(purify.func) | purify.keywords if isinstance(purify, functools.partial) else {}


class Difference(NamedTuple):
    """A value of the attacked defense that is another one in the scored defense; None where one does not name it."""

    key: str
    attacked: Any
    scored: Any


def through(attacked: Defended, scored: Defended, grad: str) -> str:
    """What the gradient of `attacked` is the gradient of."""
    if attacked is scored:
        return "the scored defense itself"
    changed = spelled(hyperparameters(attacked, scored))
    return f"the scored defense by {WORDS.get(grad, grad)}" + (f" ({', '.join(changed)})" if changed else "")


def hyperparameters(attacked: Defended, scored: Defended) -> tuple[Difference, ...]:
    """Every hyperparameter of the purifier that differs, in the order of their names, and first the purifier if it is
    another one. Without purification there is nothing to compare.
    """
    if attacked.undefended:
        return ()
    functions = tuple(unbound(model.purifier) for model in (attacked, scored))
    another = functions[0] is not functions[1]
    differences = [Difference("purifier", *map(_name, functions))] if another else []
    values, others = bound(attacked.purifier), bound(scored.purifier)
    keys = sorted({*values, *others})
    differences += [Difference(k, values.get(k), others.get(k)) for k in keys if values.get(k) != others.get(k)]
    return tuple(differences)


def _name(purify: Any) -> str:
    kind = type(purify) if isinstance(purify, nn.Module) else purify
    return f"{kind.__module__}.{kind.__qualname__}"


def spelled(found: Sequence[Difference]) -> list[str]:
    """`key=attacked instead of scored`, for every difference."""
    return [f"{d.key}={d.attacked}" + ("" if d.scored is None else f" instead of {d.scored}") for d in found]


def gradients(attack: Attack, grad: str) -> set[tuple[str, ...]]:
    """The gradient modes of the defense, outermost first, that the parts of an attack differentiate: `()` is the
    defense's own gradient, `("values",)` none at all. `grad`: the threat model's.
    """
    found = set()
    for part in attack.parts():
        modes = [mode for mode in (grad, *part.modes, part.attack.gradient) if mode != FULL]
        path = tuple(mode for k, mode in enumerate(modes) if k == 0 or mode != modes[k - 1])
        found.add((VALUES,) if part.attack.gradient == VALUES else path)
    return found


def mode_name(modes: Sequence[str]) -> str:
    """Gradient modes in one word, for people."""
    return "+".join(modes) or FULL


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
    """Every difference between the defense that the attack sees and the one that is judged; empty only where there is
    none.
    """
    found = []
    seen = gradients(attack, grad)
    modes = seen - {(), (VALUES,)}
    if modes and attack.steps:
        who = "some attacks' gradients are" if seen - modes else "the gradient is"
        found.append(f"{who} not the scored defense's: {', '.join(sorted(map(mode_name, modes)))}")
    found += spelled(hyperparameters(attacked, scored))
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
