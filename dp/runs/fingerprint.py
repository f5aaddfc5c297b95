"""A hash of Python objects by their content: numbers, tensors, networks and functions with the code that they call."""

import dis
import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), torch.dtype, torch.device)


def fingerprint(value: Any) -> str:
    """64 hexadecimal digits of a SHA-256 over the content of `value`. Equal content has an equal fingerprint.

    Of a function count its code, its defaults, the variables that it closes over, and the global objects that it uses,
    with the code of those. Of a module count the files of its package, the values that it holds, and the modules that
    it uses. Of a network count its weights, its attributes and the code of its classes. Of what an installed package
    defines counts the name alone. Raises ValueError for an object whose content cannot be seen.
    """
    digest, known = hashlib.sha256(), {}
    for part in _parts(value, known):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _parts(value: Any, known: dict[int, Any]) -> Iterator[bytes]:
    """The content of a value as bytes. `known`: the objects that were seen before, by their ids."""
    if isinstance(value, PLAIN):
        yield f"{type(value).__name__} {value!r}".encode()
        return
    if id(value) in known:  # also what refers to itself
        yield f"seen {list(known).index(id(value))}".encode()
        return
    known[id(value)] = value
    yield type(value).__qualname__.encode()
    if isinstance(value, ModuleType):
        yield value.__name__.encode()
        if not _is_installed_name(value.__name__):
            yield from (file.read_bytes() for file in _files(value))
            for child in _of_module(value):
                yield from _parts(child, known)
    elif isinstance(value, type | FunctionType | BuiltinFunctionType) and _is_installed(value):
        yield f"{value.__module__}.{value.__qualname__}".encode()
    else:
        for child in _children(value):
            yield from _parts(child, known)


def _children(value: Any) -> Iterator[Any]:
    """What the content of an object consists of, as smaller objects."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().view(-1)
        yield from (str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise ValueError("need arrays of numbers, got one of Python objects")
        yield from (str(value.dtype), value.shape, np.ascontiguousarray(value).tobytes())
    elif isinstance(value, np.generic | Path):
        yield str(value)
    elif isinstance(value, Mapping):
        yield from sorted(value.items(), key=lambda pair: repr(pair[0]))
    elif isinstance(value, Set):
        yield from sorted(value, key=repr)
    elif isinstance(value, Sequence):
        yield from value
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, FunctionType):
        yield from _of_function(value)
    elif isinstance(value, CodeType):
        yield from (value.co_code, value.co_names, value.co_consts)
    elif isinstance(value, type):
        yield from _of_class(value)
    elif isinstance(value, nn.Module):
        yield from (type(value), value._parameters, value._buffers, value._modules, _attributes(value))
        yield [list(hooks.values()) for hooks in (value._forward_pre_hooks, value._forward_hooks)]
    elif hasattr(value, "__dict__"):
        yield from (type(value), vars(value))
    else:
        raise ValueError(
            f"need numbers, text, tensors, networks, functions and objects of these, got {type(value).__qualname__}: "
            "its content cannot be seen"
        )


def _files(module: ModuleType) -> list[Path]:
    """The files of a module's code: all of its top package, since `pkg.core` is reached through `pkg`."""
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    folders = [Path(folder) for folder in getattr(top, "__path__", ())]
    if folders:
        return sorted(file for folder in folders for file in folder.rglob("*.py"))
    file = getattr(top, "__file__", None)
    return [] if file is None else [Path(file)]


def _of_module(module: ModuleType) -> Iterator[Any]:
    """The numbers, text and arrays that a module holds now, and the modules of the user's that it has names from."""
    for name, member in sorted(vars(module).items()):
        if name.startswith("__"):
            continue
        if _is_data(member):
            yield (name, member)
        origin = member if isinstance(member, ModuleType) else sys.modules.get(str(getattr(member, "__module__", "")))
        if isinstance(origin, ModuleType) and origin is not module and not _is_installed_name(origin.__name__):
            yield origin


def _is_data(value: Any) -> bool:
    """True for numbers, text, arrays and paths, and for lists, tuples, sets and mappings of these."""
    if isinstance(value, Mapping):
        return all(_is_data(key) and _is_data(each) for key, each in value.items())
    if isinstance(value, list | tuple | Set):
        return all(_is_data(each) for each in value)
    return isinstance(value, (*PLAIN, Tensor, np.ndarray, np.generic, Path))


def _of_function(function: FunctionType) -> Iterator[Any]:
    yield from (function.__code__, function.__defaults__, function.__kwdefaults__)
    yield [cell.cell_contents for cell in function.__closure__ or () if cell.cell_contents is not function]
    used = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    yield used


def _names(code: CodeType) -> Iterator[str]:
    """The global names that a piece of code reads, with those of the functions inside it."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _of_class(kind: type) -> Iterator[Any]:
    yield from kind.__bases__
    for name, member in sorted(vars(kind).items()):
        plain = member.__func__ if isinstance(member, staticmethod | classmethod) else member
        plain = plain.fget if isinstance(plain, property) else plain
        if isinstance(plain, (FunctionType, tuple, list, dict, *PLAIN)) and name not in (
            "__module__",
            "__doc__",
            "__firstlineno__",
            "__static_attributes__",
        ):
            yield (name, plain)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes that a network's own code has set; torch's begin with an underscore, but for `training`."""
    return {name: value for name, value in vars(module).items() if name[0] != "_" and name != "training"}


def _is_installed(value: Any) -> bool:
    """True for what Python or an installed package defines, and for dp, whose code the run itself records."""
    name = str(value.__module__ or "builtins")
    if isinstance(value, FunctionType) and name == "builtins":  # made by exec; those of Python itself are another type
        return False
    return _is_installed_name(name)


def _is_installed_name(name: str) -> bool:
    """True for a module of Python, of an installed package or of dp."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names - {"__main__"} or top == "dp":
        return True
    file = getattr(sys.modules.get(top), "__file__", None)
    return file is not None and "site-packages" in Path(file).parts
