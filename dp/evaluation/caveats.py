"""Caveats: the facts that a reader of a row must know, as data.

`dp/runs/caveats.py` computes them once per run; the announcement, the audit and the summary get the same object;
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
    """A hyperparameter of the purifier that the attacked and the scored defense do not share. None: it has none."""

    key: str
    attacked: Any
    scored: Any

    def __str__(self) -> str:
        other = "" if self.scored is None else f" instead of {self.scored}"
        return f"{self.key}={self.attacked}{other}"


class Change(NamedTuple):
    """A value of the configuration, by its path, beside the one that it is held against."""

    key: str
    value: Any
    reference: Any


class ShortSteps(NamedTuple):
    """An attack whose steps together are shorter than the way that they may need, in the norm's units."""

    attack: str
    reach: float
    needed: float

    def __str__(self) -> str:
        way = f"cover {self.reach:.3g} together and may need {self.needed:.3g}"
        return f"the steps of {self.attack} {way}: raise its step_size, or set it to null"


@dataclass(frozen=True)
class Caveats:
    """What weakens or qualifies one row.

    `gradients`: what the attack's parts differentiate, as tuples of gradient modes; () is the scored defense's own
    gradient, ("values",) none at all. `straight_through`: the last clamp passes
    gradients that it would stop. `differences`: hyperparameters that differ between the attacked and the scored
    purifier. `departures`: where a named protocol is not run as it is defined. `scaled`: values that stand in for those
    of the dataset's model dataset. `no_surrogate`: the protocol asks for a surrogate, the purifier has none, so it is
    attacked exactly. `masks_spared`: attacks that would add the purifier's mask to the
    protocol's own, which this run does without. `criterion`,
    `attack_samples`: what the attack goes by, and how many samples of it. `batch_bound`: an image's result depends on
    the other images in its batch. `nfe`, `attack_nfe`: network evaluations of one scored sample, and of one sample of
    the costliest gradient mode.
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

    def as_data(self) -> dict:
        """Plain data for a summary: named tuples become mappings."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Difference | Change | ShortSteps):
        return value._asdict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def gradients(attack: Attack, grad: str) -> tuple[Modes, ...]:
    """What the parts of an attack differentiate, sorted, each once: `()` is the defense's own gradient, `("values",)`
    none at all. `grad`: the threat model's.
    """
    found = set()
    for part in attack.parts():
        modes = [mode for mode in (grad, *part.modes, part.attack.gradient) if mode != FULL]
        path = tuple(mode for k, mode in enumerate(modes) if k == 0 or mode != modes[k - 1])
        found.add((VALUES,) if part.attack.gradient == VALUES else path)
    return tuple(sorted(found))


def mode_name(modes: Sequence[str]) -> str:
    """Gradient modes in one word, for people."""
    return "+".join(modes) or FULL


def bound(purify: Any) -> dict[str, Any]:
    """The hyperparameters that a purifier is bound to."""
    return bound(purify.func) | purify.keywords if isinstance(purify, functools.partial) else {}


def differences(attacked: Defended, scored: Defended) -> tuple[Difference, ...]:
    """Every hyperparameter of the purifier that differs, in the order of their names, and first the purifier if it is
    another one. Without purification there is nothing to compare.
    """
    if attacked.undefended:
        return ()
    names = [_name(unbound(model.purifier)) for model in (attacked, scored)]
    found = [Difference("purifier", *names)] if names[0] != names[1] else []
    ours, theirs = bound(attacked.purifier), bound(scored.purifier)
    keys = sorted({*ours, *theirs})
    found += [Difference(key, ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)]
    return tuple(found)


def _name(purify: Any) -> str:
    kind = type(purify) if isinstance(purify, nn.Module) else purify
    return f"{kind.__module__}.{kind.__qualname__}"


def short_steps(attack: Attack, threat: ThreatModel) -> tuple[ShortSteps, ...]:
    """The parts of an attack whose steps cannot take a point to every place of the ball, whatever the gradient."""
    found = []
    for part in attack.parts():
        reach, needed = part.attack.reach(threat), part.attack.width(threat)
        if reach is not None and reach < needed:
            found.append(ShortSteps(part.name or type(part.attack).__name__, reach, needed))
    return tuple(found)


def changes(values: Any, references: Any, path: str) -> Sequence[Change]:
    """Every leaf of plain data that differs from the other's; the paths begin with `path`."""
    if isinstance(values, dict) and isinstance(references, dict):
        keys = sorted({*values, *references})
        return [c for key in keys for c in changes(values.get(key), references.get(key), f"{path}.{key}")]
    return [] if values == references else [Change(path, values, references)]
