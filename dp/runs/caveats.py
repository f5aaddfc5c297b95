"""The caveats of a run. They are computed once, from its configuration and its objects."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from dp.contracts.declared import exceptions, honest_gradient
from dp.defense.defended import Defended
from dp.evaluation.budget import spent_of
from dp.evaluation.caveats import (
    FULL,
    VALUES,
    Caveats,
    Change,
    Fact,
    Modes,
    Stronger,
    bound,
    changes,
    differences,
    gradients,
    short_steps,
)
from dp.evaluation.dry import dry_nfe
from dp.evaluation.evaluate import Evaluation
from dp.runs.by_dataset import BUDGETS, QUICK, is_quick
from dp.runs.compose import Setup, arguments, make

GIVEN = "dp.runs.given.images"  # the loader of a program's images
FACT_IMAGES = 32  # images on which a purifier tells of itself


def caveats_of(setup: Setup, evaluation: Evaluation) -> Caveats:
    """The facts that a reader of this run's row must know."""
    attacked, scored, attack = evaluation.arms["defended"]
    config, first = setup.config, evaluation.subset.select(slice(0, 1))
    taken = gradients(attack, evaluation.threat.grad)
    models = [attacked if modes == (VALUES,) else scored.gradient_modes(modes) for modes in taken]
    return Caveats(
        gradients=taken,
        straight_through=bound(scored.purifier).get("clamp") == "straight_through",
        differences=differences(attacked, scored),
        departures=tuple(departures(setup)),
        scaled=tuple(scaled(setup, {evaluation.threat.grad, *itertools.chain(*taken)})),
        short_steps=short_steps(attack, evaluation.threat),
        no_surrogate=not scored.undefended and not setup.sets_gradient and _lacks_variant(config),
        masks_spared=_masks_spared(config, scored, taken),
        criterion=attack.criterion,
        attack_samples=evaluation.votes if evaluation.known_draws else attack.samples,
        batch_bound=attack.batch_bound,
        nfe=dry_nfe(scored, first),
        attack_nfe=max(dry_nfe(model, first) for model in models),
        facts=_facts(config, evaluation),
        exceptions=tuple(exceptions(config["purifier"])),
        stronger=_stronger(config),
        budget=() if config.get("budget") is None else (spent_of(evaluation, config["budget"]),),
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


def _stronger(config: dict) -> tuple[Stronger, ...]:
    """The converged budget that the protocol's yaml names for this dataset under `facts`. Presets of it set null."""
    known = (config["protocol"].get("facts") or {}).get(config["dataset"]["name"])
    return (Stronger(**known),) if known else ()


def departures(setup: Setup) -> Iterator[Change]:
    """The values of the protocol, attack and threat model that the command changes in a named protocol.

    The reference of a change is the value of the same options without it, on the same dataset.
    """
    config, plain = setup.config, setup.defaults
    if config["choices"]["protocol"] == "default":
        return
    protocol, expected = plain["protocol"], plain["protocol"]["attack"]
    attack, images = config["choices"]["attack"], config["protocol"].get("images")
    if expected is not None and attack not in (expected, *protocol["attack_variants"]):
        yield Change("attack", attack, expected)
    yield from changes(arguments(config["attack"]), arguments(plain["attack"]), "attack")
    threat = {**plain["threat_model"], "grad": protocol["grad"]}
    yield from changes(arguments(config["threat_model"]), arguments(threat), "threat_model")
    of_protocol = changes(arguments(config["protocol"]), arguments(protocol), "protocol")
    given = config["dataset"]["loader"].get("_target_") == GIVEN  # a program's images, all of which are attacked
    yield from (change for change in of_protocol if not (given and change.key == "protocol.images"))
    yield from changes(config["dataset"]["loader"].get("images", images), images, "dataset.loader.images")


def scaled(setup: Setup, modes: Collection[str]) -> Iterator[Change]:
    """The values that a named protocol scales to this dataset from those of a larger one, `dataset.scaled_from`, or to
    the quick budget from the full one.

    These are the values of `per_dataset` tables, and eps, that differ between the two datasets. A value that the
    command changes counts as it was before, because `departures` has the change. The purifier is no part of a
    protocol, so its values are those of the run. `modes`: the gradient modes of the run; variants of the purifier that
    it does not use are left out.
    """
    config, plain = setup.config, setup.defaults
    origin = plain["dataset"].get("scaled_from")
    if config["choices"]["protocol"] == "default":
        return
    if is_quick(config["dataset"]):
        for group in BUDGETS:
            yield from _scaled_below(plain[group], plain[group], group, (QUICK, config["dataset"]["name"]))
        return
    if origin is None:
        return
    names = (plain["dataset"]["name"], origin["dataset"])
    for group in ("protocol", "attack", "threat_model"):
        yield from _scaled_below(plain[group], plain[group], group, names)
    variants = plain["purifier"].get("gradients") or {}
    used = {**plain["purifier"], "gradients": {name: variants[name] for name in variants if name in modes}}
    yield from _scaled_below(config["purifier"], used, "purifier", names)
    threat = plain["threat_model"]
    if threat["norm"] in origin["eps"] and "eps" in threat:
        yield from changes(threat["eps"], origin["eps"][threat["norm"]], "threat_model.eps")


def _scaled_below(node: Any, plain: Any, path: str, names: tuple[str, str]) -> Iterator[Change]:
    """The scaled values in one node and all nodes below it.

    `plain`: the same node as the option defines it, with its tables. `names`: this dataset and the larger one.
    """
    if not isinstance(plain, dict) or not isinstance(node, dict):
        return
    table = plain.get("per_dataset") or {}
    small, large = ({**table.get("default", {}), **table.get(name, {})} for name in names)
    for key in small:
        if key in large:
            yield from changes(node.get(key, small[key]), large[key], f"{path}.{key}")
    for key, child in plain.items():
        if key != "per_dataset":
            yield from _scaled_below(node.get(key), child, f"{path}.{key}", names)


def _lacks_variant(config: dict) -> bool:
    """True if the protocol's table names a gradient variant that the purifier lacks, and no other stands for it."""
    if honest_gradient(config["purifier"]) is not None:
        return False
    table, variants = config["protocol"].get("per_dataset") or {}, config["purifier"].get("gradients") or {}
    wanted = {**table.get("default", {}), **table.get(config["dataset"]["name"], {})}.get("grad", FULL)
    return wanted != FULL and variants.get(wanted) is None


def _masks_spared(config: dict, scored: Defended, taken: Sequence[Modes]) -> tuple[str, ...]:
    """The variants of the protocol's attack that also attack the purifier's mask, if the run attacks no mask."""
    masks = {
        name for name, variant in scored.variants.items() if isinstance(variant, Mapping) and "mask_grad" in variant
    }
    unchanged = config["choices"]["attack"] == config["protocol"]["attack"]
    spared = unchanged and masks and not masks & {mode for modes in taken for mode in modes}
    return tuple(config["protocol"]["attack_variants"]) if spared else ()
