"""The key of a run: readable names and a hash of everything that can change a row. It is the name of its folder."""

import hashlib
import json
from collections.abc import Set
from typing import Any

from dp.runs.compose import nodes

# Keys that cannot change a row: tables whose values are in other keys, labels and declarations; by path, facts of a
# dataset; and in a node that names a file, its address.
NOT_HASHED = ("per_dataset", "facts", "mask", "published", "exceptions", "gradient", "honest", "trained_with")
NOT_HASHED_PATHS = ("dataset.files", "dataset.full_size", "dataset.scaled_from", "dataset.shape")
NOT_HASHED_OF_FILES = ("url", "megabytes")
# Options that were added later, by path, with the value that changes nothing. They are hashed only if they differ.
NEUTRAL: dict[str, Any] = {
    "protocol.attack_variants": [],
    "dataset.budget": "quick",
    "budget": None,
    "scored_dtype": "float32",
    "rng": 1,
    "compile": False,
}
NEUTRAL_OF_TARGETS: dict[tuple[str, str], Any] = {  # the same for arguments, wherever the node stands
    ("pgd_eot.PGD", "momentum"): 0.0,
    ("hetero.purify", "taps"): None,
    ("hetero.purify", "resampling"): "single",
    ("hetero_official.purify", "taps"): None,
    ("diffpure.purify", "variance"): "small",
    ("diffpure.purify", "clip_x0"): False,
    ("diffpure.purify", "pixel_sigma"): None,
    ("diffpure_ldsde.purify", "repeats"): 1,
    ("pgd_eot.PGD", "target"): None,
    ("apgd.APGD", "target"): None,
}

OLDER = {key: value for key, value in NEUTRAL.items() if "." not in key}  # what a run from before these keys had

# Values by path whose numbers moved, with what is hashed for them. Before, bfloat16 was autocast of both defenses.
MOVED: dict[tuple[str, Any], Any] = {("dtype", "bfloat16"): "bfloat16, version 2"}

# Attacks whose null control moved only with some settings: there a second version is hashed.
NULL_MOVED = {"pgd_eot.PGD": lambda node: node.get("select") == "best" or node.get("restarts", 1) > 1}


def run_key(config: dict) -> str:
    """The key of a configuration. Equal configurations have equal keys.

    Only the last two parts of a `_target_` in dp are hashed; other targets are hashed whole. Not hashed are the keys in
    `config["key_ignores"]` and `NOT_HASHED`, what says where files are, gradient variants that the run does not use, a
    version of 1, and options at their `NEUTRAL` value.
    """
    hashed = {k: v for k, v in config.items() if k not in (*config["key_ignores"], "choices", "plugins")}
    c, digest = config["choices"], digest_of(hashed, gradients_used(config))
    return f"{c['dataset']}-{c['purifier']}-{c['attack']}-{c['threat_model']}-{digest}".replace("/", "_")


def digest_of(nodes: dict, used: Set[str] = frozenset()) -> str:
    """Ten hexadecimal digits of a hash of plain data, without what cannot change a row. `used`: gradient modes."""
    return hashlib.sha256(json.dumps(_identity(nodes, used), sort_keys=True).encode()).hexdigest()[:10]


def gradients_used(config: dict) -> set[str]:
    """The names of all gradient modes that the threat model and the attack use.

    Of an attack outside dp they are all names, because its modes need not stand in its configuration.
    """
    if any(not str(node.get("_target_", "dp.")).startswith("dp.") for node in nodes(config.get("attack"))):
        return set(config["purifier"].get("gradients") or {}) | {config["threat_model"]["grad"]}
    of_attack = {node["grad"] for node in nodes(config.get("attack")) if isinstance(node.get("grad"), str)}
    return of_attack | {config["threat_model"]["grad"]}


def _identity(value: Any, used: Set[str], path: str = "") -> Any:
    """The part of a node that is hashed. `used`: the gradient modes of the run; `path`: the node's dotted name."""
    if isinstance(value, list):
        return [_identity(child, used, path) for child in value]
    if not isinstance(value, dict):
        return value
    moved = NULL_MOVED.get(_short(value.get("_target_", ""))) if path in ("attack", "attack.attack") else None
    hashed: dict[str, Any] = {"null control": 2} if moved is not None and moved(value) else {}
    for key, child in value.items():
        where = f"{path}.{key}".lstrip(".")
        neutral = (where in NEUTRAL and child == NEUTRAL[where]) or (key == "version" and child == 1)
        option = (_short(value.get("_target_", "")), key)
        neutral |= option in NEUTRAL_OF_TARGETS and child == NEUTRAL_OF_TARGETS[option]
        address = where in NOT_HASHED_PATHS or (key in NOT_HASHED_OF_FILES and "file" in value)
        if key in NOT_HASHED or address or neutral:
            continue
        if key == "_target_":
            hashed[key] = _short(child)
        elif key == "gradients" and isinstance(child, dict):
            variants = {name: _identity(variant, used) for name, variant in child.items() if name in used}
            hashed |= {key: variants} if variants else {}
        else:
            moved_value = MOVED.get((where, child)) if isinstance(child, str) else None
            hashed[key] = moved_value or _identity(child, used, where)
    return hashed


def _short(target: Any) -> str:
    """The last two parts of a `_target_` in dp, so that a module may move; another one whole."""
    inside, parts = str(target).startswith("dp."), str(target).split(".")
    return ".".join(parts[-2:]) if inside else f"outside dp: {target}"
