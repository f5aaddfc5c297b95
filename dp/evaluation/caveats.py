"""Caveats: the facts that a reader of a row must know, as data.

`dp/runs/caveats.py` computes them once per run. The announcement, the audit and the summary get the same object, and
`dp/output/report.py` makes sentences of it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from torch import nn

from dp.attacks.base import FULL, VALUES, Attack
from dp.defense.defended import Defended, unbound
from dp.threat_models.ball import ThreatModel

Modes = tuple[str, ...]  # gradient modes that are applied one after another, the outermost first


class Difference(NamedTuple):
    """A hyperparameter that differs between the attacked and the scored purifier. A purifier without it has None."""

    key: str
    attacked: Any
    scored: Any


class Change(NamedTuple):
    """A value of the configuration, by its path, that differs from its reference value."""

    key: str
    value: Any
    reference: Any


class ShortSteps(NamedTuple):
    """An attack whose steps together may be too short, in units of the norm.

    `reach`: the length of all steps together; `needed`: the distance that they may have to cover.
    """

    attack: str
    reach: float
    needed: float


class Stronger(NamedTuple):
    """A preset with a larger budget of the same protocol, and the points of robust accuracy that it took from the
    defenses of a study: the least and the most.
    """

    experiment: str
    least: float
    most: float


class Spent(NamedTuple):
    """The budget of an attack, and what it spends of it, in network evaluations of an image. `iterations`: of the
    attack, or of the longest of its parts.
    """

    budget: int
    spent: float
    iterations: int


class Fact(NamedTuple):
    """A number that a purifier tells of itself on the run's images, such as the share of pixels in its mask."""

    name: str
    value: float


@dataclass(frozen=True)
class Caveats:
    """What weakens or qualifies one row.

    `gradients`: the gradients that the attack's parts take, as tuples of gradient modes. () is the gradient of the
    scored defense itself, and ("values",) is none. `straight_through`: the gradient ignores the last clamp.
    `differences`: hyperparameters that differ between the attacked and the scored purifier. `departures`: values that
    the command changes in the named protocol. `scaled`: values that it scales to this dataset from a larger one.
    `short_steps`: attacks whose steps may be too short. `no_surrogate`: the protocol names a surrogate but the purifier
    has none, so the attack takes the exact gradient. `masks_spared`: variants of the protocol's attack that would also
    attack the purifier's mask, if this run uses none of them. `criterion`, `attack_samples`: the attack's criterion,
    and the number of samples in it. `batch_bound`: an image's result depends on the other images in its batch. `nfe`,
    `attack_nfe`: network evaluations of one scored sample, and of one sample in the costliest gradient mode. `facts`:
    what the scored purifier tells of itself on the first images. `exceptions`: the properties of the contract that its
    yaml declares as not holding. `stronger`: the converged budget of the protocol on this dataset, if this run has a
    quick one. `budget`: what the attack spends, if its iterations are set by a budget.
    """

    gradients: tuple[Modes, ...]
    straight_through: bool
    differences: tuple[Difference, ...]
    departures: tuple[Change, ...]
    scaled: tuple[Change, ...]
    short_steps: tuple[ShortSteps, ...]
    no_surrogate: bool
    masks_spared: tuple[str, ...]
    criterion: str
    attack_samples: int
    batch_bound: bool
    nfe: int
    attack_nfe: int
    facts: tuple[Fact, ...]
    exceptions: tuple[str, ...] = ()
    stronger: tuple[Stronger, ...] = ()
    budget: tuple[Spent, ...] = ()

    def as_data(self) -> dict:
        """The caveats as plain data for a summary. Named tuples become mappings."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Difference | Change | ShortSteps | Fact | Stronger | Spent):
        return value._asdict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def gradients(attack: Attack, grad: str) -> tuple[Modes, ...]:
    """The gradients that the parts of an attack take, as sorted tuples of gradient modes without duplicates.

    () is the gradient of the defense itself, and ("values",) is none. `grad`: the threat model's gradient mode.
    """
    taken = set()
    for part in attack.parts():
        modes = [mode for mode in (grad, *part.modes, part.attack.gradient) if mode != FULL]
        path = tuple(mode for k, mode in enumerate(modes) if k == 0 or mode != modes[k - 1])
        taken.add((VALUES,) if part.attack.gradient == VALUES else path)
    return tuple(sorted(taken))


def mode_name(modes: Sequence[str]) -> str:
    """The name of gradient modes that are applied one after another, such as `surrogate+bpda`."""
    return "+".join(modes) or FULL


def bound(purify: Any) -> dict[str, Any]:
    """The hyperparameters of a purifier, by name."""
    return bound(purify.func) | purify.keywords if isinstance(purify, functools.partial) else {}


def differences(attacked: Defended, scored: Defended) -> tuple[Difference, ...]:
    """The hyperparameters that differ between two purifiers, sorted by name.

    If the purifiers themselves differ, that difference comes first. An attacked bare classifier has no differences.
    """
    if attacked.undefended:
        return ()
    names = [_name(unbound(model.purifier)) for model in (attacked, scored)]
    unequal = [Difference("purifier", *names)] if names[0] != names[1] else []
    first, second = bound(attacked.purifier), bound(scored.purifier)
    keys = sorted({*first, *second})
    unequal += [Difference(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)]
    return tuple(unequal)


def _name(purify: Any) -> str:
    kind = type(purify) if isinstance(purify, nn.Module) else purify
    return f"{kind.__module__}.{kind.__qualname__}"


def short_steps(attack: Attack, threat: ThreatModel) -> tuple[ShortSteps, ...]:
    """The parts of an attack whose steps together are too short to reach every point of the ball."""
    short = []
    for part in attack.parts():
        reach, needed = part.attack.reach(threat), part.attack.width(threat)
        if reach is not None and reach < needed:
            short.append(ShortSteps(part.name or type(part.attack).__name__, reach, needed))
    return tuple(short)


def changes(values: Any, references: Any, path: str) -> Sequence[Change]:
    """The leaves of two nodes of plain data that differ. Their paths begin with `path`."""
    if isinstance(values, dict) and isinstance(references, dict):
        keys = sorted({*values, *references})
        return [c for key in keys for c in changes(values.get(key), references.get(key), f"{path}.{key}")]
    return [] if values == references else [Change(path, values, references)]
