"""Refuse pickles with anything that weights do not need, before they are read: a scan of their opcodes.

Stand-ins for numpy's types let the rest be read without numpy's own constructors.
"""

import io
import mmap
import pickle
import pickletools
import reprlib
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

OPCODES = 5_000_000  # limit; an EDM pickle has about 40 thousand, a training checkpoint fewer
TUPLE = 5_000  # limit of objects in a tuple with the tuples in it; checkpoints have a few
REFUSED = ("INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "BYTEARRAY8")
TRANSFORMS = ("hex", "base64", "bz2", "quopri", "quotedprintable", "uu", "zip", "zlib")  # codecs other than of text
UNREADABLE = (
    pickle.UnpicklingError, EOFError, MemoryError, RecursionError, TypeError, ValueError, KeyError, IndexError,
    AttributeError, OverflowError, RuntimeError, AssertionError, OSError, struct.error,
)  # fmt: skip
STORAGES = tuple(
    f"torch.{kind}Storage"
    for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
)
FORMATS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}


class Refused(ValueError):
    """A file with more than its format needs. The message says what, and follows the file's name."""


def refuse(why: str) -> Any:
    """Raise Refused, where an expression is needed."""
    raise Refused(why)


def scan(file: mmap.mmap | io.BytesIO, allowed: Collection[str] | None = None) -> None:
    """Scan the opcodes of one pickle, from the file's position to the pickle's end. Raises Refused.

    `file`: in memory or mapped, so that a read of a terabyte returns only what exists. `allowed`: the globals that the
    pickle may name; None leaves that to the reader.
    """
    counted, weights = 0, _Weights()
    try:
        for opcode, value, _ in pickletools.genops(file):  # pyright: ignore[reportArgumentType]
            counted += 1
            weights.step(opcode, value)
            if opcode.name in REFUSED:
                refuse(f"it uses the pickle opcode {opcode.name}")
            if counted > OPCODES:
                refuse(f"it has more than {OPCODES} opcodes")
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(value or 0) > counted:
                refuse(f"it asks for {value} memory cells")
            if allowed is not None and opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                name = str(value).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL" or name not in allowed:
                    refuse(f"it names {short(name)}")
            if allowed is not None and isinstance(value, str) and _codec(value) in TRANSFORMS:
                refuse(f"it names the codec {short(value)}")
    except (ValueError, OverflowError, struct.error) as error:
        if isinstance(error, Refused):
            raise
        refuse(f"it is torn or not a pickle ({' '.join(str(error).split())[:80]})")


class _Weights:
    """The cost of hashing each object on the pickle's stack: for a tuple the sum over its content, else 1.

    A tuple of tuples that repeat each other is short in the file and takes forever to hash. Deep ones overflow the
    stack.
    """

    def __init__(self):
        self.stack: list[int | None] = []  # None is a mark
        self.memo: dict[int, int] = {}

    def step(self, opcode: Any, value: Any) -> None:
        """Apply one opcode to the costs on the stack. Raises Refused for a tuple above the limit."""
        name, before = opcode.name, opcode.stack_before
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else int(value)] = self.top()
            return
        if name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo.get(int(value), 1))
            return
        if name == "MARK":
            self.stack.append(None)
            return
        popped = self.pop_mark() if pickletools.markobject in before else []
        for _ in [b for b in before if b not in (pickletools.markobject, pickletools.stackslice)]:
            popped.append(self.top())
            del self.stack[-1:]
        weight = 1 + sum(popped) if name.startswith("TUPLE") else 1
        if weight > TUPLE:
            refuse("a tuple holds tuples without end")
        after = popped * 2 if name == "DUP" else [weight] * len(opcode.stack_after)
        self.stack.extend(after)

    def top(self) -> int:
        """The cost of the topmost object."""
        return self.stack[-1] or 1 if self.stack else 1

    def pop_mark(self) -> list[int]:
        """Remove the objects above the last mark, and the mark, and return their costs."""
        popped = []
        while self.stack:
            weight = self.stack.pop()
            if weight is None:
                break
            popped.append(weight)
        return popped


def short(value: Any) -> str:
    """A value from a file, as at most 80 printable characters for a one-line message."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    return ascii(text)[1:-1][:80]


def _codec(name: str) -> str:
    """A codec's name in the form in which Python looks it up."""
    return "".join(c for c in name.lower() if c.isalnum()).removesuffix("codec")


def legacy(file: mmap.mmap | io.BytesIO, allowed: Collection[str]) -> int:
    """Scan the five pickles at the head of an old torch file (no archive); return where they end. Raises Refused."""
    for _ in range(5):  # magic number, protocol, system, content, keys of the storages
        scan(file, allowed)
    return file.tell()


class Kind:
    """Stands for a numpy dtype, by its letter and size. It must be little-endian or of one byte."""

    def __init__(self, code: Any, *_: Any):
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", "|", b"<", b"|")):
            refuse("a numpy number is not little-endian")


def number(kind: Any, data: Any) -> float | int:
    """Stands for numpy's scalar constructor and returns a Python number. Raises Refused for an unknown kind."""
    if not isinstance(kind, Kind) or kind.code not in FORMATS or not isinstance(data, bytes):
        refuse("a numpy number is of an unknown kind")
    return struct.unpack(FORMATS[kind.code], data)[0]


class _Array:
    """Stands for a numpy array of bytes, the only kind in CIFAR's batches."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        if not isinstance(kind, Kind) or kind.code != "u1" or fortran or not isinstance(raw, bytes):
            refuse("an array is not of unsigned bytes")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape)


class _Batch(pickle.Unpickler):
    """Reads numpy's arrays of bytes and refuses every other name."""

    known: ClassVar[dict[str, Any]] = {
        **{f"numpy.{core}.multiarray._reconstruct": lambda *_: _Array() for core in ("core", "_core")},
        "numpy.ndarray": None.__class__,
        "numpy.dtype": lambda *arguments: Kind(*arguments),
        "__builtin__.bytes": lambda: b"",  # Python 3 writes empty bytes for Python 2 like this
        "_codecs.encode": lambda text, codec: text.encode("latin1") if codec == "latin1" else refuse("another codec"),
    }

    def find_class(self, module: str, name: str) -> Any:
        return self.known.get(f"{module}.{name}") or refuse(f"it names {short(f'{module}.{name}')}")


def batch(path: Path) -> dict:
    """The content of a CIFAR python batch by name, arrays as uint8, text of Python 2 as bytes.

    Raises ValueError, in one line, for any other file. Nothing in it is executed.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            scan(view)
            content = _Batch(file, encoding="bytes").load()
        if type(content) is not dict:
            refuse(f"it holds a {type(content).__name__}, no dictionary")
        return {k: v.value if isinstance(v, _Array) else v for k, v in content.items()}
    except UNREADABLE as error:
        why = error if isinstance(error, Refused) else f"it cannot be read ({type(error).__name__})"
        raise ValueError(f"need a CIFAR python batch, got {path}: {why}; nothing was executed") from None
