"""The command of a run, from its configuration."""

import functools
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

from dp.runs.compose import composed
from dp.runs.keys import NOT_HASHED, OLDER, run_key

PLAIN = re.compile(r"[A-Za-z_][\w./-]*|\d+/\d+")  # text that the command line reads as itself
WORDS = ("null", "true", "false", "nan", "inf")  # text that it reads as another value
FIRST = "dataset.budget"  # the key that sets others


def command_of(config: dict) -> str:
    """The command that runs `config` again, without what cannot change a row.

    `config`: the configuration in a summary. Raises what the composition raises where an option no longer exists.
    """
    folders = tuple(config.get("plugins", {}).get("folders", ()))
    words = words_of_run(config, folders)
    return shlex.join(["dp", "run", *(f"--config-dir={folder}" for folder in folders), *words])


def same_key(config: dict) -> bool:
    """True if the command of `config` gives its key today: no method's version has moved, and no option was added."""
    folders = tuple(config.get("plugins", {}).get("folders", ()))
    base = _base(_options(config), folders)
    today = _merged(base, OLDER | config) | {"key_ignores": base["key_ignores"]}  # which may name keys that are newer
    return run_key(today) == run_key(config)


def _merged(base: dict, node: dict) -> dict:
    """`base` with the values of `node` in place of its own."""
    both = {key: value for key, value in node.items() if isinstance(value, dict) and isinstance(base.get(key), dict)}
    return base | node | {key: _merged(base[key], value) for key, value in both.items()}


def _options(config: dict) -> tuple[str, ...]:
    """The words for the options of `config`, and for the budget of its dataset, which sets many values."""
    options = [f"{group}={option}" for group, option in config["choices"].items() if option is not None]
    budget = config["dataset"].get("budget", "quick")
    return tuple(options if budget == "quick" else [*options, f"+{FIRST}={budget}"])


def words_of_run(config: dict, folders: tuple[str, ...] = ()) -> list[str]:
    """The words of a command that has the values of `config`: its options, then each value that differs from theirs."""
    return [*_options(config), *changes_of(config, folders)]


def changes_of(config: dict, folders: tuple[str, ...] = ()) -> list[str]:
    """A word for each value of `config` that is not that of its options.

    A key that the present yamls have and `config` lacks stays as it is, but for `OLDER`: the run is older than the key.
    """
    top = {
        key: value
        for key, value in (OLDER | config).items()
        if key not in (*config.get("key_ignores", ()), "choices", "plugins")
    }
    changes = list(_changes(_base(_options(config), folders), top, ""))
    values = {(where.rpartition(".")[2], json.dumps(value)) for _, where, value in changes if not _loads(where)}
    return [
        f"{sign}{where}={written(value)}"
        for sign, where, value in changes
        # The value of a loader follows from a key of the same name, such as protocol.images.
        if not _loads(where) or (where.rpartition(".")[2], json.dumps(value)) not in values
    ]


def _loads(where: str) -> bool:
    return where.startswith("dataset.loader.")


@functools.cache
def _base(options: tuple[str, ...], folders: tuple[str, ...]) -> dict:
    return composed(*options, config_dirs=folders)


def _changes(base: dict, node: dict, path: str) -> Iterator[tuple[str, str, Any]]:
    """Each value of `node` that is not that of `base`: `+` for a key that `base` lacks, else nothing; the key; it."""
    for key, value in node.items():
        where = f"{path}.{key}".lstrip(".")
        if key in NOT_HASHED or where == FIRST or (key in base and base[key] == value):
            continue
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            yield from _changes(base[key], value, where)
        else:
            yield "" if key in base else "+", where, value


def written(value: Any) -> str:
    """A value by the grammar of the command line."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) and value.lower() not in WORDS else json.dumps(value)
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(child)}" for key, child in value.items()) + "}"
    return json.dumps(value)
