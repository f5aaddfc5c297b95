"""What a yaml declares about its method: exceptions from the contract, and that the method has no gradient."""

from collections.abc import Mapping
from typing import Any

from dp.spelling import near_matches

# By group, the properties of the contract that a yaml may declare as exceptions.
EXCEPTIONS = {"purifier": ("gradient", "derivative"), "attack": ("moves",)}
NO_GRADIENT = "none"  # `gradient: none` in the yaml of a purifier
BPDA = "bpda"


def exceptions(node: Mapping[str, Any]) -> dict[str, str]:
    """The declared exceptions of a purifier or an attack: the reason of each property."""
    return dict(node.get("exceptions") or {})


def honest_gradient(purifier: Mapping[str, Any]) -> str | None:
    """The gradient mode that a purifier without a gradient of its own names; None for a purifier that has one.

    `gradient: none` means `bpda`, the identity in place of the derivative (Athalye et al. 2018).
    """
    named = purifier.get("gradient")
    return BPDA if named == NO_GRADIENT else named


def gradient_for(purifier: Mapping[str, Any], name: str) -> str:
    """The gradient mode `name` if the purifier has this variant, else `full`; if it names an honest one, that one."""
    variants = purifier.get("gradients") or {}
    return honest_gradient(purifier) or (name if variants.get(name) is not None else "full")


def check_declared(config: Mapping[str, Any]) -> None:
    """Raises ValueError for exceptions that are no known properties with a reason, and for a wrong `gradient` or
    `honest`.
    """
    for group, node in config.items():
        if isinstance(node, Mapping) and node.get("exceptions") is not None:
            _check_exceptions(group, node["exceptions"])
    purifier, reasons = config["purifier"], exceptions(config["purifier"])
    named = purifier.get("gradient")
    if (named is None) != ("gradient" not in reasons):
        example = "gradient: none with exceptions: {gradient: REASON}"
        got = "the reason alone" if named is None else f"gradient: {named} without a reason"
        raise ValueError(f"need purifier.gradient and its reason together, such as {example}, got {got}")
    variants = [name for name, variant in (purifier.get("gradients") or {}).items() if variant is not None]
    if named not in (None, NO_GRADIENT, BPDA, *variants):
        modes = ", ".join((NO_GRADIENT, *variants))
        raise ValueError(f"need purifier.gradient as one of {modes}, got {named}: it names what is attacked instead")
    honest, modes = purifier.get("honest") or [], ("full", BPDA, *variants)
    if not isinstance(honest, list) or not {*map(str, honest)} <= {*modes}:
        raise ValueError(f"need purifier.honest as a list of {', '.join(modes)}, got {honest}")


def _check_exceptions(group: str, given: Any) -> None:
    where, known = f"{group}.exceptions", EXCEPTIONS.get(group, ())
    if not isinstance(given, Mapping):
        raise ValueError(f"need {where} as a mapping, such as {{PROPERTY: REASON}}, got {given!r}")
    for name, reason in given.items():
        if name not in known:
            listed = f"it may have {', '.join(known)}" if known else "it may have none"
            raise ValueError(f"unknown exception {where}.{name}{near_matches(str(name), known)}: {listed}")
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"need the reason of {where}.{name} as text, got {reason!r}")
