"""The caveats of a run, computed once from its configuration and its objects."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dp.defense.defended import Defended
from dp.evaluation.caveats import (
    FULL,
    VALUES,
    Caveats,
    Change,
    Modes,
    bound,
    changes,
    differences,
    gradients,
    short_steps,
)
from dp.evaluation.evaluate import Evaluation
from dp.runs.build import dry_nfe
from dp.runs.compose import Setup, arguments


def caveats_of(setup: Setup, evaluation: Evaluation) -> Caveats:
    """What a reader of this run's row must know."""
    attacked, scored, attack = evaluation.arms["defended"]
    config, first = setup.config, evaluation.subset.select(slice(0, 1))
    asked = gradients(attack, evaluation.threat.grad)
    models = [attacked if modes == (VALUES,) else scored.gradient_modes(modes) for modes in asked]
    stand_ins = tuple(scaled(config))
    return Caveats(
        gradients=asked,
        straight_through=bound(scored.purifier).get("clamp") == "straight_through",
        differences=differences(attacked, scored),
        departures=tuple(departures(setup, {change.key for change in stand_ins})),
        scaled=stand_ins,
        short_steps=short_steps(attack, evaluation.threat),
        no_surrogate=_wants_surrogate(config) and evaluation.threat.grad == FULL,
        masks_spared=_masks_spared(config, scored, asked),
        criterion=attack.criterion,
        attack_samples=evaluation.votes if evaluation.known_draws else attack.samples,
        batch_bound=attack.batch_bound,
        nfe=dry_nfe(scored, first),
        attack_nfe=max(dry_nfe(model, first) for model in models),
    )


def departures(setup: Setup, scaled_keys: set[str]) -> Iterator[Change]:
    """Where a named protocol is not run as it is defined, but for what is scaled to the dataset anyway."""
    config, plain, protocol = setup.config, setup.defaults, setup.config["protocol"]
    if config["choices"]["protocol"] == "default":
        return
    attack, own = config["choices"]["attack"], protocol["attack"]
    found: list[Change] = []
    if attack == own:
        found += changes(arguments(config["attack"]), arguments(plain["attack"]), "attack")
    elif attack not in protocol["attack_variants"]:
        found.append(Change("attack", attack, own))
    grads = (config["threat_model"]["grad"], plain["protocol"]["grad"])
    found += [Change("threat_model.grad", *grads)] if grads[0] != grads[1] else []
    found += changes(arguments(protocol), arguments(plain["protocol"]), "protocol")
    yield from (change for change in found if change.key not in scaled_keys)


def scaled(config: dict) -> Iterator[Change]:
    """What a named protocol has on this dataset in place of its own numbers: every value of a `per_dataset` table, and
    the radius, that is another one on the dataset that this one stands in for (`dataset.scaled_from`).
    """
    origin = config["dataset"].get("scaled_from")
    if origin is None or config["choices"]["protocol"] == "default":
        return
    names = (config["dataset"]["name"], origin["dataset"])
    for group in ("protocol", "attack", "purifier", "threat_model"):
        yield from _scaled_below(config[group], group, names)
    threat = config["threat_model"]
    if threat["norm"] in origin["eps"]:
        yield from changes(threat["eps"], origin["eps"][threat["norm"]], "threat_model.eps")


def _scaled_below(node: Any, path: str, names: tuple[str, str]) -> Iterator[Change]:
    """The same for one node and all below it; `names`: this dataset and the one that it stands in for."""
    if not isinstance(node, dict):
        return
    table = node.get("per_dataset") or {}
    ours, theirs = ({**table.get("default", {}), **table.get(name, {})} for name in names)
    for key in ours:
        if key in theirs:
            yield from changes(node.get(key, ours[key]), theirs[key], f"{path}.{key}")
    for key, child in node.items():
        if key not in ("per_dataset", "gradients"):
            yield from _scaled_below(child, f"{path}.{key}", names)


def _wants_surrogate(config: dict) -> bool:
    """Whether the protocol asks for a gradient variant that the purifier does not have."""
    protocol, name = config["protocol"], config["dataset"]["name"]
    table = protocol.get("per_dataset") or {}
    wanted = {**table.get("default", {}), **table.get(name, {})}.get("grad", protocol["grad"])
    return wanted != FULL and wanted not in (config["purifier"].get("gradients") or {})


def _masks_spared(config: dict, scored: Defended, asked: Sequence[Modes]) -> tuple[str, ...]:
    """Attacks that add the purifier's mask to the protocol's own, where the run does without them."""
    masks = {
        name for name, variant in scored.variants.items() if isinstance(variant, Mapping) and "mask_grad" in variant
    }
    own = config["choices"]["attack"] == config["protocol"]["attack"]
    spared = own and masks and not masks & {mode for modes in asked for mode in modes}
    return tuple(config["protocol"]["attack_variants"]) if spared else ()
