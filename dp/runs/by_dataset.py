"""Values that depend on the dataset: the resolvers of the yamls, and the quick budget of a dataset of one's own."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dp.contracts.declared import gradient_for

ROOT = Path(__file__).parents[2]
CONF = (
    ROOT / "dp" / "conf" if (ROOT / "dp" / "conf").is_dir() else ROOT / "conf"
)  # dp/conf in an installed wheel, conf in a checkout
DATASET_KEYS = ("name", "loader", "eps", "lanes", "draws_per_call")  # that the yaml of a dataset must have
QUICK = "digits"  # the column of a table that is the quick budget
BUDGETS = ("attack", "protocol")  # groups whose tables are budgets
# The counts that are a budget. Other values of the quick column, such as step sizes, were chosen for digits alone.
QUICK_KEYS = (
    "iterations",
    "eot",
    "queries",
    "directions",
    "confirm",
    "images",
    "votes",
    "targets",
    "losses",
    "restarts",
)
QUICK_KEYS += ("steps", "every", "screen", "draws", "grad")  # counts, and the exact gradient


def per_dataset(key: str, *, _parent_: Any, _root_: Any) -> Any:
    """The resolver ${per_dataset:key}: the value of `key` for the chosen dataset.

    It comes from the `per_dataset` table of this node, or else of the nearest node above. A table maps dataset names,
    or `default`, to values by key. The quick budget, see `is_quick`, has the `QUICK_KEYS` of `digits`, and what is null
    there, such as a step size, because it follows from other values. Raises ValueError if no table has a value.
    """
    name, tables, node = _root_.dataset.name, [], _parent_
    budget = str(_parent_._get_full_key(None)).partition(".")[0] in BUDGETS and is_quick(_root_.dataset)
    columns = (name, QUICK, "default") if budget else (name, "default")
    while node is not None:
        table = node.get("per_dataset") if isinstance(node, DictConfig) else None
        if table is not None:
            tables.append(table)
            for column in columns:
                if column in table and key in table[column]:
                    value = table[column][key]
                    if column in (name, "default") or key in QUICK_KEYS or value is None:
                        return value
            if any(key in values for values in table.values()):
                break
        node = node._get_parent()
    known = [column for table in tables[-1:] for column, values in table.items() if key in values]
    raise ValueError(
        f"no value of {key} for dataset {name}, only for {', '.join(known) or 'none'}: set the key on the command line"
    )


def is_quick(dataset: Mapping[str, Any]) -> bool:
    """True for a dataset whose name is not in dp's tables, unless it has `budget: full`. It has the quick budget.

    `dataset`: its node. Raises ValueError for another `budget`.
    """
    budget = dataset.get("budget", "quick")
    if budget not in ("quick", "full"):
        raise ValueError(f"need dataset.budget quick or full, got dataset.budget={budget}")
    return budget == "quick" and dataset["name"] not in shipped()


@functools.cache
def shipped() -> set[str]:
    """The names of dp's own datasets."""
    return {path.stem for path in (CONF / "dataset").glob("*.yaml")}


def available_gradient(name: str, *, _root_: Any) -> str:
    """The resolver ${available_gradient:NAME}: see `gradient_for`."""
    return gradient_for(_root_.purifier, name)


OmegaConf.register_new_resolver("per_dataset", per_dataset, replace=True)
OmegaConf.register_new_resolver("available_gradient", available_gradient, replace=True)


def unvalued(node: DictConfig, path: str = "") -> Iterator[str]:
    """The keys below a node that have no value for the dataset, as words of a command, with a value of another one."""
    for key in node:
        where = f"{path}.{key}".lstrip(".")
        raw = node._get_node(key)
        if isinstance(raw, DictConfig) and not raw._is_interpolation():
            yield from unvalued(raw, where)
        elif raw is not None and "${per_dataset:" in str(raw._value()):  # pyright: ignore[reportAttributeAccessIssue]
            try:
                node[key]
            except OmegaConfBaseException:
                known = {name: column[key] for name, column in (node.get("per_dataset") or {}).items() if key in column}
                yield f"{where}=..." + "".join(f" ({name}: {value})" for name, value in [*known.items()][-1:])
