"""The caveats of a run. They are computed once, from its configuration and its objects."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from dp.defense.defended import Defended
from dp.evaluation.caveats import (
    FULL,
    VALUES,
    Caveats,
    Change,
    Fact,
    Modes,
    bound,
    changes,
    differences,
    gradients,
    short_steps,
)
from dp.evaluation.evaluate import Evaluation
from dp.runs.build import dry_nfe
from dp.runs.compose import Setup, arguments, make

FACT_IMAGES = 32  # images on which a purifier tells of itself


def caveats_of(setup: Setup, evaluation: Evaluation) -> Caveats:
    """The facts that a reader of this run's row must know."""
    attacked, scored, attack = evaluation.arms["defended"]
    config, first = setup.config, evaluation.subset.select(slice(0, 1))
    taken = gradients(attack, evaluation.threat.grad)
    models = [attacked if modes == (VALUES,) else scored.gradient_modes(modes) for modes in taken]
    scaled_values = tuple(scaled(config))
    return Caveats(
        gradients=taken,
        straight_through=bound(scored.purifier).get("clamp") == "straight_through",
        differences=differences(attacked, scored),
        departures=tuple(departures(setup, {change.key for change in scaled_values})),
        scaled=scaled_values,
        short_steps=short_steps(attack, evaluation.threat),
        no_surrogate=_wants_surrogate(config) and evaluation.threat.grad == FULL,
        masks_spared=_masks_spared(config, scored, taken),
        criterion=attack.criterion,
        attack_samples=evaluation.votes if evaluation.known_draws else attack.samples,
        batch_bound=attack.batch_bound,
        nfe=dry_nfe(scored, first),
        attack_nfe=max(dry_nfe(model, first) for model in models),
        facts=_facts(config, evaluation),
    )


def _facts(config: dict, evaluation: Evaluation) -> tuple[Fact, ...]:
    """What the purifier tells of itself on the first images, by the function that its yaml names under `facts`."""
    node = config["purifier"].get("facts")
    if node is None:
        return ()
    scored, images = evaluation.arms["defended"].scored, evaluation.subset.select(slice(0, FACT_IMAGES))
    tell = make(node, modules=config["plugins"]["modules"])
    with torch.no_grad():
        told = tell(images.x.to(evaluation.device), scored.denoiser, scored.classifier, **bound(scored.purifier))
    return tuple(Fact(name, float(value)) for name, value in told.items())


def departures(setup: Setup, scaled_keys: set[str]) -> Iterator[Change]:
    """The values that differ from those of a named protocol. The keys in `scaled_keys` are left out."""
    config, plain, protocol = setup.config, setup.defaults, setup.config["protocol"]
    if config["choices"]["protocol"] == "default":
        return
    attack, expected = config["choices"]["attack"], protocol["attack"]
    changed: list[Change] = []
    if attack == expected:
        changed += changes(arguments(config["attack"]), arguments(plain["attack"]), "attack")
    elif attack not in protocol["attack_variants"]:
        changed.append(Change("attack", attack, expected))
    grads = (config["threat_model"]["grad"], plain["protocol"]["grad"])
    changed += [Change("threat_model.grad", *grads)] if grads[0] != grads[1] else []
    changed += changes(arguments(protocol), arguments(plain["protocol"]), "protocol")
    yield from (change for change in changed if change.key not in scaled_keys)


def scaled(config: dict) -> Iterator[Change]:
    """The values that a named protocol scales to this dataset from a larger one, `dataset.scaled_from`.

    These are the values of `per_dataset` tables, and eps, that differ between the two datasets.
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
    """The scaled values in one node and all nodes below it. `names`: this dataset and the larger one."""
    if not isinstance(node, dict):
        return
    table = node.get("per_dataset") or {}
    small, large = ({**table.get("default", {}), **table.get(name, {})} for name in names)
    for key in small:
        if key in large:
            yield from changes(node.get(key, small[key]), large[key], f"{path}.{key}")
    for key, child in node.items():
        if key not in ("per_dataset", "gradients"):
            yield from _scaled_below(child, f"{path}.{key}", names)


def _wants_surrogate(config: dict) -> bool:
    """True if the protocol names a gradient variant that the purifier does not have."""
    protocol, name = config["protocol"], config["dataset"]["name"]
    table = protocol.get("per_dataset") or {}
    wanted = {**table.get("default", {}), **table.get(name, {})}.get("grad", protocol["grad"])
    return wanted != FULL and wanted not in (config["purifier"].get("gradients") or {})


def _masks_spared(config: dict, scored: Defended, taken: Sequence[Modes]) -> tuple[str, ...]:
    """The variants of the protocol's attack that also attack the purifier's mask, if the run attacks no mask."""
    masks = {
        name for name, variant in scored.variants.items() if isinstance(variant, Mapping) and "mask_grad" in variant
    }
    unchanged = config["choices"]["attack"] == config["protocol"]["attack"]
    spared = unchanged and masks and not masks & {mode for modes in taken for mode in modes}
    return tuple(config["protocol"]["attack_variants"]) if spared else ()
