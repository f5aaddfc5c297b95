"""Whether JSON has the shape that its file should have, and one line that says where it has not."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "a truth value",
    NoneType: "null",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}

_hints = functools.cache(get_type_hints)


def read_json(path: Path, shape: Any, todo: str) -> Any:
    """The content of a JSON file, which must have a shape (see `misfit`). `todo`: what a user can do if it has not.

    Raises ValueError, in one line with the path and `todo`, for a directory in its place, a file that is empty, torn
    or no JSON, and JSON of another shape. Raises FileNotFoundError if there is no such file.
    """
    content, problem = parsed(contents(path, todo))
    problem = problem or misfit(content, shape)
    if problem:
        raise ValueError(f"need {path} as it was written, got {problem}: {todo}")
    return content


def read_lines(path: Path, shape: Any, todo: str) -> tuple[list[bytes], list[Any], int]:
    """The lines of a .jsonl file that are whole and of a shape: as bytes, as content; and the number of other lines.

    An incomplete last line, which a kill leaves, is not counted. Raises ValueError for a directory in its place.
    """
    raw, good, damaged = [], [], 0
    for line in contents(path, todo).split(b"\n")[:-1]:  # after the last newline is nothing, or an incomplete line
        content, problem = parsed(line)
        if problem or misfit(content, shape):
            damaged += 1
        else:
            raw.append(line + b"\n")
            good.append(content)
    return raw, good, damaged


def contents(path: Path, todo: str) -> bytes:
    """The bytes of a file. Raises ValueError, in one line, for a directory in its place."""
    if path.is_dir():
        raise ValueError(f"need the file {path}, got a directory: move it away, then {todo}")
    return path.read_bytes()


def parsed(data: bytes) -> tuple[Any, str | None]:
    """The JSON value in `data` and None, or None and what is wrong with it."""
    if not data.strip():
        return None, "an empty file"
    try:
        return json.loads(data), None
    except (ValueError, RecursionError):
        return None, "a file that is torn or no JSON"


def misfit(value: Any, shape: Any, where: str = "") -> str | None:
    """The first place where a JSON value has not the shape of a type hint, in words, or None if it fits.

    Hints are int, float, str, bool, None, Any, list, dict, tuple, Literal[False], unions and TypedDicts. A float may
    be a whole number. A TypedDict must have its required keys and may have others.
    """
    if shape is Any:
        return None
    if is_typeddict(shape):
        return _of_mapping(value, shape, where)
    origin, inner = get_origin(shape), get_args(shape)
    if origin in (UnionType, Union):
        return _of_union(value, inner, where)
    if origin is Literal:
        return None if any(value is choice for choice in inner) else f"{_named(value)} for {where}"
    kind: type = origin or (NoneType if shape is None else shape)
    accepted: Any = {float: (int, float), tuple: list}.get(kind, kind)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        return f"{_named(value)} for {where or 'its content'} instead of {NAMES[kind]}"
    if isinstance(value, list) and kind is tuple and len(value) != len(inner):
        return f"{len(value)} values for {where} instead of {len(inner)}"
    return _first(value, kind, inner, where)


def _of_mapping(value: Any, shape: Any, where: str) -> str | None:
    if not isinstance(value, dict):
        return f"{_named(value)} for {where or 'its content'} instead of a mapping"
    missing = sorted(shape.__required_keys__ - value.keys())
    if missing:
        return f"no {_below(where, missing[0])}"
    known = [(key, hint) for key, hint in _hints(shape).items() if key in value]
    return next((m for key, hint in known if (m := misfit(value[key], hint, _below(where, key)))), None)


def _of_union(value: Any, shapes: Sequence[Any], where: str) -> str | None:
    problems = [misfit(value, shape, where) for shape in shapes]
    if None in problems:
        return None
    deep = [p for p, shape in zip(problems, shapes, strict=True) if isinstance(value, dict) and is_typeddict(shape)]
    return deep[0] if deep else f"{_named(value)} for {where or 'its content'}"


def _first(value: Any, kind: type, inner: Sequence[Any], where: str) -> str | None:
    """The first misfit of the items of a list or mapping."""
    if kind is dict and inner:
        return next((m for k, item in value.items() if (m := misfit(item, inner[1], _below(where, k)))), None)
    if kind in (list, tuple) and inner:
        shapes = inner if kind is tuple else [inner[0]] * len(value)
        items = zip(value, shapes, strict=True)
        return next((m for k, (item, shape) in enumerate(items) if (m := misfit(item, shape, _below(where, k)))), None)
    return None


def _below(where: str, key: object) -> str:
    return f"{where}.{key}".lstrip(".")


def _named(value: Any) -> str:
    return "a mapping" if isinstance(value, Mapping) else NAMES[type(value)]
