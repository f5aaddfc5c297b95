"""Checks of a configuration against its options and the signatures that it will call, before anything runs."""

import inspect
import math
from abc import ABCMeta
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from dp.attacks.base import FULL, VALUES
from dp.contracts.declared import check_declared
from dp.evaluation.budget import check_budget
from dp.evaluation.evaluate import check_counts
from dp.precision import DTYPES
from dp.rng import VERSIONS
from dp.runs.by_dataset import shipped
from dp.runs.compose import Setup, arguments
from dp.runs.errors import unknown_option
from dp.runs.gpus import check_cost
from dp.runs.help import options
from dp.runs.machine import device_of, shard_of, workers_of
from dp.runs.protocol_keys import check_protocol
from dp.runs.targets import RESERVED, target_of
from dp.runs.words import GROUPS
from dp.spelling import near_matches
from dp.threat_models.ball import parse_eps

HYDRAS = {"_target_": str, "_partial_": bool, "_recursive_": bool, "_args_": list, "_convert_": str}  # keys of a node
STARRED = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
KINDS = {dict: "a mapping", list: "a list", (int, float): "a number", str: "one value"}
SIMPLE = {int: (int,), float: (int, float), str: (str,), bool: (bool,), NoneType: (NoneType,), Sequence: (list,)}
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
WORDS[Sequence] = "a list"
# Keys that a yaml may leave out, of nodes without a `_target_`.
OPTIONAL = ("dataset.budget", "dataset.files", "dataset.full_size", "dataset.scaled_from", "dataset.shape")
OPTIONAL += ("protocol.version",)


def check_setup(setup: Setup) -> None:
    """Check all of a command's configuration that can be checked without its objects. Raises ValueError."""
    config, defaults = setup.config, setup.defaults
    check_keys({k: v for k, v in config.items() if k not in ("choices", "plugins")}, defaults)
    check_gradients(config)
    check_run(config)
    check_kinds(config, defaults)
    check_finite(config)
    check_config(config)
    attack, known = config["protocol"]["attack"], options("attack", config["plugins"]["folders"])
    if attack is not None and attack not in known:
        raise ValueError(unknown_option("protocol.attack", attack, [*known]))
    if config["key_ignores"] != defaults["key_ignores"]:
        raise ValueError(
            f"need key_ignores={defaults['key_ignores']}, because other keys change rows, got another list"
        )


def check_config(config: dict) -> None:
    """Check a configuration against the signatures that it will call. Raises ValueError."""
    check_targets(config)
    check_protocol(config["protocol"], config["window"])
    check_precision(config)
    check_dataset(config["dataset"])
    check_counts(config["protocol"]["votes"], config["dataset"]["lanes"], config["protocol"]["seeds"])


def check_run(config: dict) -> None:
    """Raises ValueError for wrong values of the keys that say how a run is done, and on which device."""
    if not isinstance(config["overwrite"], bool):
        raise ValueError(f"need overwrite true or false, got overwrite={config['overwrite']}")
    if config["overwrite"] and str(config["shard"]) != "1/1":
        raise ValueError("need shard=1/1 with overwrite=true, because a shard would move the rows of the others aside")
    every = config["save_every"]
    if isinstance(every, bool) or not isinstance(every, int | float) or not 0 < every < float("inf"):
        raise ValueError(f"need save_every > 0, in seconds, got save_every={every}")
    if config["audit"] != "auto" and not isinstance(config["audit"], bool):
        raise ValueError(f"need audit auto, true or false, got audit={config['audit']}")
    check_cost(config["cost"])
    check_budget(config["budget"])
    for read in (device_of, workers_of, shard_of):
        read(config)
    check_call(arguments(config["engine"]), "engine", config["plugins"]["modules"])


def check_finite(value: Any, name: str = "") -> None:
    """Raises ValueError for a number in plain data that is NaN or infinite. `name`: the dotted name of the data."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"need {name} as a finite number, got {name}={value}")
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        check_finite(child, f"{name}.{key}".lstrip("."))


def check_keys(node: dict, default: dict, name: str = "", argument: bool = False) -> None:
    """Check that a node has the keys of its option, no other ones, and the option's own version.

    `default`: the node of the same options without changes; `name`: its dotted name. The keys of a node with a
    `_target_` are its arguments, which `check_call` checks, and so are those below it (`argument`). Raises ValueError.
    """
    free = argument or "_target_" in node
    absent = [] if free else [f"{name}.{key}".lstrip(".") for key in default if key not in node]
    if set(absent) - {*OPTIONAL}:
        raise ValueError(f"need {absent[0]}, which every run reads, got a command that takes it out")
    for key, value in node.items():
        where, there = f"{name}.{key}".lstrip("."), default.get(key)
        if key == "version" and value != there:
            raise ValueError(
                f"need {where}={there}, the version of the code that makes the numbers, got {where}={value}"
            )
        if key not in default and not free and where not in OPTIONAL:
            raise ValueError(f"unknown key {where}{near_matches(str(key), map(str, default))}: nothing reads it")
        if key in ("facts", "mask") and value not in (there, None):
            raise ValueError(f"need {where} as its yaml has it or null, got another one")
        if key == "per_dataset" and isinstance(value, dict):
            _check_tables(where, value, node, there)
        elif isinstance(value, dict) and isinstance(there, dict) and (key not in RESERVED or key == "gradients"):
            check_keys(value, there, where, free)


def check_gradients(node: dict, name: str = "") -> None:
    """Raises ValueError for a key `gradient` or `gradients` outside the purifier, where nothing reads it."""
    for key, value in node.items():
        where = f"{name}.{key}".lstrip(".")
        if key in ("gradient", "gradients") and name != "purifier":
            raise ValueError(f"unknown key {where}: only purifier.{key} is read; threat_model.grad sets the attack's")
        if isinstance(value, dict) and key not in RESERVED:  # there they are names, as in exceptions
            check_gradients(value, where)


def _check_tables(name: str, tables: dict, node: dict, default: Any) -> None:
    """Check that a table of values by dataset has only keys that its node, or the option's own table, has."""
    known = {key for column in (default or {}).values() for key in column} | {str(key) for key in node}
    for dataset, column in tables.items():
        if not isinstance(column, dict):
            raise ValueError(f"need {name}.{dataset} as a mapping of values, got {column!r}")
        for key in column:
            if key not in known:
                raise ValueError(f"unknown key {name}.{dataset}.{key}{near_matches(str(key), known)}: nothing reads it")


def check_precision(config: dict) -> None:
    """Raises ValueError for values of `compile`, the precisions, the memory mode or the generator that do not exist."""
    if not isinstance(config["compile"], bool):
        raise ValueError(f"need compile true or false, got compile={config['compile']}")
    for key, known in (("dtype", DTYPES), ("scored_dtype", DTYPES), ("memory", ("auto", "store", "recompute"))):
        if config[key] not in known:
            raise ValueError(f"need {key} one of {', '.join(known)}, got {key}={config[key]}")
    if config["rng"] not in VERSIONS or isinstance(config["rng"], bool):
        raise ValueError(f"need rng one of {', '.join(map(str, VERSIONS))}, got rng={config['rng']}")


def check_dataset(dataset: dict) -> None:
    """Raises ValueError unless `lanes` and `draws_per_call` of a dataset are whole numbers >= 1, and every eps > 0.

    Nor may a dataset of dp have a `budget`, which would change nothing.
    """
    if "budget" in dataset and dataset["name"] in shipped():
        own = f"need dataset.budget for a dataset of your own only, got one for {dataset['name']}"
        raise ValueError(f"{own}: +experiment=digits/full is the full budget of digits, and the others have theirs")
    for norm, eps in dataset["eps"].items():
        try:
            parse_eps(eps)
        except ValueError as error:
            raise ValueError(f"dataset.eps.{norm}: {error}") from None
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
        if group != "engine":  # no part of an evaluation, and older runs name none
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
    for key, value in node.items():
        kind = HYDRAS.get(key) if key.startswith("_") else object
        if kind is None:
            raise ValueError(
                f"unknown key {where}.{key}{near_matches(key, HYDRAS)}: {node['_target_']} does not take it"
            )
        if key != "_target_" and not isinstance(value, kind):
            raise ValueError(f"need {where}.{key} of type {kind.__name__}, got {value!r}")
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
    """Check a value against plain types and lists only. eps is not checked: it may be text, which its class reads."""
    allowed = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    wanted = [get_origin(option) or option for option in allowed]
    if not all(w in SIMPLE for w in wanted) or where.endswith(".eps"):
        return
    right = any(isinstance(value, SIMPLE[w]) and (not isinstance(value, bool) or w is bool) for w in wanted)
    if not right:
        raise ValueError(f"need {where} as {' or '.join(WORDS[w] for w in wanted)}, got {value!r}")


def check_kinds(config: dict, defaults: dict, name: str = "") -> None:
    """Raises ValueError if a value is not a mapping, a list, a number or text where the yaml has one.

    null is allowed, because many keys take it. Text is allowed for eps, which may be a fraction, and any single value
    in place of text, because its class says what it takes.
    """
    for key, value in config.items():
        where, default = f"{name}.{key}".lstrip("."), defaults.get(key)
        if isinstance(default, dict) and isinstance(value, dict):
            check_kinds(value, default, where)
        wanted = next((kind for kind in KINDS if _is(default, kind)), None)
        if wanted is None or value is None or key in ("eps", "url"):
            continue
        if not (_is(value, wanted) if wanted is not str else not isinstance(value, dict | list)):
            known = f" of {', '.join(map(str, default))}" if isinstance(default, dict) else f", such as {default}"
            raise ValueError(f"need {where} as {KINDS[wanted]}{known}, got {value!r}")


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
