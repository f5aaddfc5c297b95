"""What a `_target_` may name, and the numbers of a configuration in the types that its signature asks for."""

import inspect
import pydoc
import re
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from dp.spelling import near_matches

# The packages whose functions and classes a `_target_` may name; plug-ins add their modules. timm and the rest of torch
# are left out, because they have functions that execute a pickle.
PACKAGES = ("dp", "torch.nn", "torch.optim", "torchvision.models")

# Keys of a node that are no arguments of its `_target_`. They are removed before the call.
RESERVED = (
    "per_dataset",
    "gradients",
    "gradient",
    "exceptions",
    "facts",
    "honest",
    "mask",
    "published",
    "trained_with",
    "version",
)

NUMBER = r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
FRACTION = re.compile(f"{NUMBER}/{NUMBER}")


def target_of(name: Any, modules: Sequence[str] = (), where: str = "") -> Callable:
    """The function or class that a `_target_` names. Nothing is imported if the name is not allowed.

    The name must be below `PACKAGES` or below `modules`, the top modules of plug-ins. So must the module that defines
    the object: `dp.commands.tables.Path` is refused, because pathlib defines it. `where`: the node's dotted name, for
    the message. Raises ValueError.
    """
    allowed, key = (*PACKAGES, *modules), f"{where}._target_".lstrip(".")
    if not is_below(str(name), allowed):
        advice = "name other modules in a yaml of --config-dir"
        raise ValueError(f"need {key} below {', '.join(allowed)}, got {name}: {advice}")
    target = pydoc.locate(name)
    if not callable(target):
        raise ValueError(f"need {key} to name a function or class, got {name}{_why(str(name))}")
    module = inspect.getmodule(target)
    if module is None or not is_below(module.__name__, allowed):
        owner = "no module" if module is None else module.__name__
        raise ValueError(f"need {key} to name what a module below {', '.join(allowed)} defines, got {name} of {owner}")
    return target


def _why(name: str) -> str:
    """Why a name is of no object, in words: its module is not found, or has another name that is near."""
    where, _, last = name.rpartition(".")
    module = pydoc.locate(where)
    if module is None:
        return f": there is no module {where} in the working folder, or on PYTHONPATH"
    return near_matches(last, [each for each in vars(module) if not each.startswith("_")])


def is_below(name: str, packages: Sequence[str]) -> bool:
    """True if a dotted name is one of these packages or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def typed(config: dict, modules: Sequence[str] = ()) -> dict:
    """The configuration with every number as a float where the signature says so: 1 becomes 1.0, and `1/255` its value.

    Two spellings of a number are then one run. eps stays a fraction where it is one, as `8/255`, because rows print it.
    What cannot be read is left as it is, and `check_call` names it. `modules`: top modules of plug-ins.
    """
    numbers = {key: _typed(value, modules) for key, value in config.items()}
    dataset = numbers.get("dataset")
    if isinstance(dataset, dict) and isinstance(dataset.get("eps"), dict):
        dataset["eps"] = {norm: _eps(value) for norm, value in dataset["eps"].items()}
    return numbers


def _typed(node: Any, modules: Sequence[str], floats: Sequence[str] = ()) -> Any:
    """The same of a node. `floats`: keys that are floats, of a node without a `_target_`."""
    if isinstance(node, list):
        return [_typed(child, modules) for child in node]
    if not isinstance(node, dict):
        return node
    floats, plain = _floats(node, modules) if "_target_" in node else floats, {}
    for key, value in node.items():
        if key == "gradients" and isinstance(value, dict):  # variants: other values of the node's own arguments
            plain[key] = {name: _typed(variant, modules, floats) for name, variant in value.items()}
        elif key in floats:
            plain[key] = _eps(value) if key == "eps" else _float(value)
        else:
            plain[key] = value if key in RESERVED else _typed(value, modules)
    return plain


def _floats(node: dict, modules: Sequence[str]) -> list[str]:
    """The arguments of a node's `_target_` that are floats, or null; empty if the target cannot be found."""
    try:
        parameters = inspect.signature(target_of(node["_target_"], modules)).parameters
    except (ValueError, pydoc.ErrorDuringImport):
        return []
    return [key for key, parameter in parameters.items() if _is_float(parameter.annotation)]


def _is_float(annotation: Any) -> bool:
    union = get_origin(annotation) in (UnionType, Union)
    options = get_args(annotation) if union else (annotation,)
    return float in options and int not in options and str not in options


def _float(value: Any) -> Any:
    """A whole number or a fraction as a float; anything else as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    parts = FRACTION.fullmatch(value) if isinstance(value, str) else None
    return float(parts[1]) / float(parts[2]) if parts and float(parts[2]) else value


def _eps(value: Any) -> Any:
    """A whole number as a float, and a fraction without spaces or idle points: `8 / 255.` is `8/255`."""
    parts = FRACTION.fullmatch(value) if isinstance(value, str) else None
    if parts is None:
        return _float(value)
    numbers = [float(part) for part in parts.groups()]
    return "/".join(str(int(number) if number.is_integer() else number) for number in numbers)
