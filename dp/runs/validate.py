"""Checks of a configuration against the signatures that it will call, before anything runs."""

import inspect
from abc import ABCMeta
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, get_args

from dp.attacks.base import FULL, VALUES
from dp.contracts.declared import check_declared
from dp.runs.compose import GROUPS, arguments, target_of
from dp.spelling import near_matches
from dp.statistics.metrics import RULES

STARRED = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
KINDS = {dict: "a mapping", list: "a list", (int, float): "a number"}
SIMPLE = {int: (int,), float: (int, float), str: (str,), bool: (bool,), NoneType: (NoneType,)}
PROTOCOL_KEYS = ("seeds", "votes", "ties", "report", "grad", "attack", "attack_variants", "known_draws", "judge")


def check_run(config: dict) -> None:
    """Raises ValueError for wrong values of `overwrite`, `shard` and `save_every`."""
    if not isinstance(config["overwrite"], bool):
        raise ValueError(f"need overwrite true or false, got overwrite={config['overwrite']}")
    if config["overwrite"] and str(config["shard"]) != "1/1":
        raise ValueError("need shard=1/1 with overwrite=true, because a shard would move the rows of the others aside")
    every = config["save_every"]
    if isinstance(every, bool) or not isinstance(every, int | float) or not 0 < every < float("inf"):
        raise ValueError(f"need save_every > 0, in seconds, got save_every={every}")


def check_precision(config: dict) -> None:
    """Raises ValueError for a precision or a memory mode that does not exist."""
    if config["dtype"] not in ("float32", "bfloat16") or config["memory"] not in ("auto", "store", "recompute"):
        given = f"{config['dtype']}, {config['memory']}"
        raise ValueError(f"need dtype float32 or bfloat16 and memory auto, store or recompute, got {given}")


def check_batches(dataset: dict) -> None:
    """Raises ValueError unless `lanes` and `draws_per_call` of a dataset are whole numbers of at least 1."""
    for key in ("lanes", "draws_per_call"):
        value = dataset[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"need dataset.{key} as a whole number >= 1, got dataset.{key}={value}")


def check_targets(config: dict) -> None:
    """Check that every `_target_` of the configuration exists and takes exactly the keys that it is given.

    A gradient variant is checked against its own `_target_` if it has one, else against the purifier's. Its name must
    not be that of a gradient which every defense has. Raises ValueError.
    """
    modules = config["plugins"]["modules"]
    for group in GROUPS:
        check_call(arguments(config[group]), group, modules)
    purifier = config["purifier"]
    variants = purifier.get("gradients") or {}
    if not isinstance(variants, dict):
        raise ValueError(f"need purifier.gradients as a mapping of variants, got {variants!r}")
    for name, variant in variants.items():
        where = f"purifier.gradients.{name}"
        if name in (FULL, "bpda", "blind", VALUES):
            raise ValueError(f"need another name for {where}: every defense has a gradient of the name {name} already")
        if variant is None:
            continue
        if not isinstance(variant, dict):
            raise ValueError(f"need {where} as a mapping, such as {{steps: 3}}, got {variant!r}")
        node = variant if "_target_" in variant else {**arguments(purifier), **variant}
        check_call(arguments(node), where, modules)
    check_declared(config)


def check_call(node: Any, where: str = "", modules: Sequence[str] = ()) -> None:
    """Check that every `_target_` in `node` is allowed and takes exactly the keys that it is given, with their types.

    `where`: the node's dotted name, for the message. `modules`: top modules of plug-ins, which are allowed too. The
    positional arguments of a `_partial_` are not checked, because they are given later. Raises ValueError.
    """
    if isinstance(node, list):
        for i, value in enumerate(node):
            check_call(value, f"{where}.{i}", modules)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        check_call(value, f"{where}.{key}".lstrip("."), modules)
    if "_target_" not in node:
        return
    target = target_of(node["_target_"], modules, where)
    if isinstance(target, ABCMeta) and target.__abstractmethods__:
        lacks = ", ".join(sorted(target.__abstractmethods__))
        raise ValueError(
            f"need {node['_target_']} ({where}) to define {lacks}, got a class without it: see docs/extending.md"
        )
    given = {k: v for k, v in node.items() if not k.startswith("_")}
    parameters = inspect.signature(target).parameters
    catches_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    parameters = {k: p for k, p in parameters.items() if p.kind not in STARRED}
    unknown = [] if catches_all else [k for k in given if k not in parameters]
    if unknown:
        near = near_matches(unknown[0], parameters)
        raise ValueError(f"unknown key {where}.{unknown[0]}{near}: {node['_target_']} does not take it")
    needed = [k for k, p in parameters.items() if p.default is p.empty]
    if node.get("_partial_"):
        needed = [k for k in needed if parameters[k].kind is inspect.Parameter.KEYWORD_ONLY]
    missing = [k for k in needed if k not in given]
    if missing:
        raise ValueError(f"missing key {where}.{missing[0]}: {node['_target_']} needs it")
    for key, value in given.items():
        if key in parameters:
            _check_type(f"{where}.{key}", value, parameters[key].annotation)


def _check_type(where: str, value: Any, annotation: Any) -> None:
    """Check a value against plain types only. eps is not checked: it may be text, which its class reads."""
    wanted = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    if not all(w in SIMPLE for w in wanted) or where.endswith(".eps"):
        return
    right = any(isinstance(value, SIMPLE[w]) and (not isinstance(value, bool) or w is bool) for w in wanted)
    if not right:
        raise ValueError(f"need {where} of type {' or '.join(w.__name__ for w in wanted)}, got {value!r}")


def check_kinds(config: dict, defaults: dict, name: str = "") -> None:
    """Raises ValueError if a value is not a mapping, a list or a number where the yaml has one.

    null is allowed, because many keys take it. Text is allowed for eps, which may be a fraction.
    """
    for key, value in config.items():
        where, default = f"{name}.{key}".lstrip("."), defaults.get(key)
        if isinstance(default, dict) and isinstance(value, dict):
            check_kinds(value, default, where)
        wanted = next((kind for kind in KINDS if _is(default, kind)), None)
        if wanted is not None and value is not None and key != "eps" and not _is(value, wanted):
            raise ValueError(f"need {where} as {KINDS[wanted]}, such as {default}, got {value!r}")


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def check_protocol(protocol: dict, window: int) -> None:
    """Raises ValueError for missing or wrong keys of a protocol, and for a `window` that is no whole number."""
    absent = [key for key in PROTOCOL_KEYS if key not in protocol]
    if absent:
        raise ValueError(f"need protocol.{absent[0]}, got a protocol without it")
    if protocol["judge"] is not None and not isinstance(protocol["judge"], dict):
        raise ValueError(f"need protocol.judge as null or a mapping, got {protocol['judge']}")
    if not isinstance(window, int) or isinstance(window, bool):
        raise ValueError(f"need window as a whole number, got window={window}")
    rules, known = protocol["report"], protocol["known_draws"]
    if not isinstance(rules, list) or not rules or set(rules) - set(RULES):
        raise ValueError(f"need protocol.report as a list of {', '.join(RULES)}, got {rules}")
    if not isinstance(known, bool):
        raise ValueError(f"need protocol.known_draws true or false, got {known}")
