"""Reading pickles without running them: a scan of the opcodes, and stand-ins for the few names in an EDM pickle.

Nothing that a file names is imported or called, and the source text that it carries is not looked at.
"""

import io
import mmap
import pickle
import pickletools
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

OPCODES = 5_000_000  # an EDM pickle has about 40 thousand, a training checkpoint fewer
DEPTH = 40
MODULES = 100_000
REFUSED = ("INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "BYTEARRAY8")
TRANSFORMS = ("hex", "base64", "bz2", "quopri", "quotedprintable", "uu", "zip", "zlib")  # codecs other than of text
UNREADABLE = (
    pickle.UnpicklingError, EOFError, MemoryError, RecursionError, TypeError, ValueError, KeyError, IndexError,
    AttributeError, OverflowError, RuntimeError,
)  # fmt: skip
TENSOR = "torch._utils._rebuild_tensor_v2"
STORAGE = "torch.storage._load_from_bytes"


class Refused(ValueError):
    """A file that does not stay within what its format needs; the message goes behind the file's name."""


class EDMPickle(NamedTuple):
    """What is of use in an EDM pickle. `wrapper`, `net`: class names of the preconditioner and its network;
    `constants`: the preconditioner's numbers; `settings`: the network's constructor arguments; `state`: its tensors.
    """

    wrapper: str
    net: str
    constants: dict[str, Any]
    settings: dict[str, Any]
    state: dict[str, Tensor]


def scan(file: mmap.mmap | io.BytesIO, allowed: Collection[str] | None = None) -> None:
    """Walk over one pickle's opcodes, from the file's position to its end, and refuse what no checkpoint needs.

    `file`: in memory or mapped, where asking for a terabyte gives what is there. `allowed`: the globals that may be
    named; None leaves that to the reader. Raises Refused.
    """
    counted = 0
    try:
        for opcode, value, _ in pickletools.genops(file):  # pyright: ignore[reportArgumentType]
            counted += 1
            if opcode.name in REFUSED:
                raise Refused(f"it uses the pickle opcode {opcode.name}")
            if counted > OPCODES:
                raise Refused(f"it has more than {OPCODES} opcodes")
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(value or 0) > counted:
                raise Refused(f"it asks for {value} memory cells")
            if allowed is not None and opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                name = str(value).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL" or name not in allowed:
                    raise Refused(f"it names {name}")
            if allowed is not None and isinstance(value, str) and _codec(value) in TRANSFORMS:
                raise Refused(f"it names the codec {value}")
    except (ValueError, OverflowError, struct.error, UnicodeDecodeError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"it is torn or not a pickle ({' '.join(str(error).split())[:80]})") from None


def _codec(name: str) -> str:
    """A codec's name as Python looks it up."""
    return "".join(c for c in name.lower() if c.isalnum()).removesuffix("codec")


def edm(path: Path) -> EDMPickle:
    """The network under `ema` of an EDM pickle, as tensors. Raises Refused."""
    limit = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        scan(view)
        if view.tell() != limit:
            raise Refused(f"it goes on for {limit - view.tell()} bytes behind its end")
        try:
            content = _Reader(file, limit).load()
        except Refused:
            raise
        except UNREADABLE as error:
            raise Refused(f"it cannot be rebuilt ({type(error).__name__})") from None
    ema = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(ema, _Object):
        raise Refused("it has no network under `ema`")
    net = ema.modules().get("model")
    if not isinstance(net, _Object):
        raise Refused("its `ema` wraps no `model`")
    settings = net.plain("_init_kwargs", dict)
    if net.plain("_init_args", tuple):
        raise Refused("its network was made with positional arguments")
    state: dict[str, Tensor] = {}
    _collect(net, "", state, [0], 0)
    total = sum(v.numel() * v.element_size() for v in state.values())
    if total > limit:
        raise Refused(f"its tensors would take {total} bytes, more than the file has")
    constants = {k: v for k, v in ema.state.items() if isinstance(v, int | float) and not k.startswith("_")}
    return EDMPickle(ema.kind, net.kind, constants, settings, state)


def arrays(path: Path) -> Any:
    """The content of a pickle of plain objects and numpy arrays, as CIFAR's python batches are; text of Python 2 comes
    as bytes. Raises ValueError for anything else.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            scan(view)
            return _Arrays(file, encoding="bytes").load()
    except (Refused, *UNREADABLE) as error:
        why = error if isinstance(error, Refused) else f"it cannot be read ({type(error).__name__})"
        raise ValueError(f"need a pickle of numpy arrays, got {path}: {why}; nothing was executed") from None


class _Arrays(pickle.Unpickler):
    """Knows how numpy arrays are put together, and nothing else."""

    known: ClassVar[dict[str, Any]] = {
        **{
            f"numpy.{core}.multiarray._reconstruct": np.ndarray.__reduce__(np.zeros(0))[0] for core in ("core", "_core")
        },
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
        "__builtin__.bytes": lambda: b"",  # how Python 3 writes empty bytes for Python 2
        "_codecs.encode": lambda text, codec: text.encode("latin1") if codec == "latin1" else _refuse("another codec"),
    }

    def find_class(self, module: str, name: str) -> Any:
        return self.known.get(f"{module}.{name}") or _refuse(f"it names {module[:60]}.{name[:60]}")


def _refuse(why: str) -> Any:
    raise Refused(why)


def _collect(module: Any, prefix: str, into: dict[str, Tensor], visited: list[int], depth: int) -> None:
    """Parameters and buffers under their dotted names, as in a state dict."""
    visited[0] += 1
    if not isinstance(module, _Object) or depth > DEPTH or visited[0] > MODULES:
        raise Refused("its modules are nested in a way that no network is")
    for kind in ("_parameters", "_buffers"):
        for name, value in module.plain(kind, dict).items():
            if isinstance(value, Tensor):
                into[prefix + str(name)] = value
            elif value is not None:
                raise Refused(f"its {kind} hold something other than tensors")
    for name, child in module.modules().items():
        if child is not None:
            _collect(child, f"{prefix}{name}.", into, visited, depth + 1)


class _Object:
    """What a module left in the file: the name of its class and its attributes."""

    kind = "ModuleDict"
    state: dict = MappingProxyType({})  # pyright: ignore[reportAssignmentType]

    def __init__(self, kind: str = "ModuleDict", state: Any = None):
        self.kind = kind
        self.state: dict = state if isinstance(state, dict) else {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise Refused("a module's state is no dictionary")
        self.state = state

    def plain(self, name: str, kind: type) -> Any:
        found = self.state.get(name)
        if found is not None and not isinstance(found, kind):
            raise Refused(f"a module's {name} is no {kind.__name__}")
        return kind() if found is None else found

    def modules(self) -> dict:
        return self.plain("_modules", dict)


class _Kind:
    """A numpy dtype: its letter and size."""

    def __init__(self, code: Any, *_: Any):
        self.code = code

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) > 1 and state[1] == "<"):
            raise Refused("a numpy number is not little-endian")


class _Reader(pickle.Unpickler):
    """Resolves the names of EDM pickles to stand-ins made for this file alone; every other name is refused."""

    def __init__(self, file: IO[bytes], limit: int):
        super().__init__(file)
        self.left = limit
        numpy = {f"numpy.{core}.multiarray.scalar": self.number for core in ("core", "_core")}
        self.known: dict[str, Callable] = {
            "collections.OrderedDict": OrderedDict,
            "torch.nn.modules.container.ModuleDict": type("ModuleDict", (_Object,), {}),
            "torch_utils.persistence._reconstruct_persistent_obj": lambda meta: self.module(meta),
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            TENSOR: lambda *arguments: self.tensor(*arguments),
            STORAGE: lambda data: self.storage(data),
            "numpy.dtype": type("Kind", (_Kind,), {}),
            "dnnlib.util.EasyDict": type("EasyDict", (dict,), {}),
            **{name: (lambda *arguments: self.number(*arguments)) for name in numpy},
        }

    def find_class(self, module: str, name: str) -> Any:
        found = self.known.get(f"{module}.{name}")
        if found is None:
            raise Refused(f"it names {module[:60]}.{name[:60]}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("it refers to objects outside of itself")

    def module(self, meta: Any) -> _Object:
        fields = ("type", "version", "module_src", "class_name", "state")
        if not isinstance(meta, dict) or set(meta) != set(fields):
            raise Refused("a persistent object has other fields than EDM writes")
        if (meta["type"], meta["version"]) != ("class", 6) or not isinstance(meta["class_name"], str):
            raise Refused(f"a persistent object is of another version: {str(meta['version'])[:20]}, need 6")
        return _Object(meta["class_name"], meta["state"])

    def storage(self, data: Any) -> torch.UntypedStorage:
        """Raw numbers that were written as a file of their own: read as tensors only, and no more than the file has."""
        if not isinstance(data, bytes) or data[:2] == b"PK":
            raise Refused("a storage is not in the format that EDM writes")
        self.left -= len(data)
        if self.left < 0:
            raise Refused("its storages repeat each other")
        legacy(io.BytesIO(data), STORAGES)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # typed storages are deprecated, not their files
                found = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
                if not isinstance(found, torch.storage.TypedStorage) or found.dtype != torch.float32:
                    raise Refused("a storage holds something other than float32")
                raw = found.untyped()
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise Refused(f"a storage cannot be read ({type(error).__name__})") from None
        if raw.nbytes() > len(data):
            raise Refused("a storage is larger than its bytes")
        return raw

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        if not isinstance(storage, torch.UntypedStorage) or not isinstance(size, tuple) or not isinstance(offset, int):
            raise Refused("a tensor is not made of a storage, an offset and a size")
        dense = torch.empty(size, device="meta").stride()
        numel = torch.Size(size).numel()
        if tuple(stride) != dense and numel > 1:
            raise Refused("a tensor is not dense")
        if offset < 0 or 4 * (offset + numel) > storage.nbytes():
            raise Refused("a tensor reaches beyond its storage")
        return torch.empty(0).set_(storage, offset, size, dense)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def number(self, kind: Any, data: Any) -> float | int:
        """A numpy scalar as a Python number."""
        formats = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}
        if not isinstance(kind, _Kind) or kind.code not in formats or not isinstance(data, bytes):
            raise Refused("a numpy number is of an unknown kind")
        return struct.unpack(formats[kind.code], data)[0]


STORAGES = tuple(
    f"torch.{kind}Storage"
    for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
)


def legacy(file: mmap.mmap | io.BytesIO, allowed: Collection[str]) -> None:
    """Scan the five pickles at the head of a torch file that is not a zip archive. Raises Refused."""
    for _ in range(5):  # magic number, protocol, system, content, keys of the storages
        scan(file, allowed)
