"""The key of a run: readable names and a hash of all that can change a row. Same configuration, same folder."""

import hashlib
import json
from typing import Any

from dp.runs.compose import nodes

# Keys that cannot change a row: tables whose values stand elsewhere, labels, and where a file comes from.
NOT_HASHED = ("per_dataset", "published", "url", "megabytes", "files", "full_size", "scaled_from")
# An option that was added later, by its path, with the value that changes nothing: hashed only where it differs.
NEUTRAL: dict[str, Any] = {"protocol.attack_variants": []}


def run_key(config: dict) -> str:
    """Same configuration, same key: readable names and a hash of all that can change a row.

    Of a `_target_` the last two parts count. Left out are `config["key_ignores"]`, `NOT_HASHED`, gradient variants
    that the run does not use, a version of 1, and options at their `NEUTRAL` value.
    """
    kept = {k: v for k, v in config.items() if k not in (*config["key_ignores"], "choices", "plugins")}
    used = gradients_used(config)
    digest = hashlib.sha256(json.dumps(_identity(kept, used), sort_keys=True).encode()).hexdigest()[:10]
    c = config["choices"]
    return f"{c['dataset']}-{c['purifier']}-{c['attack']}-{c['threat_model']}-{digest}".replace("/", "_")


def gradients_used(config: dict) -> set[str]:
    """The names of all gradient modes that the threat model and the attack ask for."""
    asked = {node["grad"] for node in nodes(config.get("attack")) if isinstance(node.get("grad"), str)}
    return asked | {config["threat_model"]["grad"]}


def _identity(value: Any, used: set[str], path: str = "") -> Any:
    if isinstance(value, list):
        return [_identity(child, used, path) for child in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, child in value.items():
        where = f"{path}.{key}".lstrip(".")
        neutral = (where in NEUTRAL and child == NEUTRAL[where]) or (key == "version" and child == 1)
        if key in NOT_HASHED or neutral:
            continue
        if key == "_target_":
            found[key] = ".".join(str(child).split(".")[-2:])
        elif key == "gradients" and isinstance(child, dict):
            variants = {name: _identity(variant, used) for name, variant in child.items() if name in used}
            found |= {key: variants} if variants else {}
        else:
            found[key] = _identity(child, used, where)
    return found
