"""Read EDM's pickles as tensors without running them, by stand-ins for the few names that they hold.

Nothing that a file names is imported or called, and the source code in it is ignored.
"""

import functools
import inspect
import io
import mmap
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from dp.weights.pickle_scan import STORAGES, UNREADABLE, Kind, Refused, legacy, number, refuse, scan, short

DEPTH = 40  # limit of nested modules
PARTS = 100_000  # limit of modules and tensors; a full-size network has two thousand
CONSTANTS = {  # of the preconditioners that dp.diffusion.denoisers implements
    "EDMPrecond": {"sigma_data": 0.5},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000},
    "VEPrecond": {},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000},
}
TRAINING_ONLY = ("label_dropout", "use_checkpoint", "use_fp16")
PLAIN = (bool, int, float, str, type(None))
TENSOR = "torch._utils._rebuild_tensor_v2"
STORAGE = "torch.storage._load_from_bytes"


class EDMPickle(NamedTuple):
    """The useful content of an EDM pickle.

    `wrapper`, `net`: class names of the preconditioner and its network. `constants`: the preconditioner's numbers.
    `settings`: the network's constructor arguments, None if the file does not record them. `state`: its tensors.
    """

    wrapper: str
    net: str
    constants: dict[str, Any]
    settings: dict[str, Any] | None
    state: dict[str, Tensor]


def edm(path: Path) -> EDMPickle:
    """The network under `ema` of an EDM pickle, as tensors. Raises Refused for any other content."""
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
    if net.plain("_init_args", tuple) or not all(_is_plain(v) for v in settings.values()):
        raise Refused("its network was not made with plain settings by name")
    state: dict[str, Tensor] = {}
    _collect(net, "", state, set(), 0)
    total = sum(v.numel() * v.element_size() for v in state.values())
    if total > limit:
        raise Refused(f"its tensors would take {total} bytes, more than the file has")
    constants = {str(k): v if isinstance(v, PLAIN) else "no number" for k, v in ema.state.items()}
    return EDMPickle(ema.kind, net.kind, constants, settings or None, state)  # a network needs at least a size


def check_made_by(content: EDMPickle, net: Any, wrapper: str | None, record: str | None, name: str) -> None:
    """Raise ValueError unless the network that the yaml builds is made as the file says that its network was."""
    if wrapper is None or content.wrapper != wrapper:
        raise ValueError(f"need {name} with the preconditioner {wrapper}, got {content.wrapper}: choose that denoiser")
    if wrapper not in CONSTANTS:
        raise ValueError(f"need a preconditioner among {', '.join(CONSTANTS)}, got {wrapper}: no adapter computes it")
    for key, value in CONSTANTS[wrapper].items():
        if content.constants.get(key, value) != value:
            raise ValueError(f"need {key}={value} in {name}, got {short(content.constants[key])}")
    if not isinstance(net, functools.partial):
        raise ValueError(f"need `_partial_: true` for the network of the EDM pickle {name}")
    assert inspect.isclass(net.func)
    if net.func.__name__ != content.net:
        raise ValueError(f"need {name} made as {net.func.__name__}, got {content.net}")
    if content.settings is None and record is None:
        raise ValueError(
            f"need {name} with the settings of its network (_init_kwargs), got none: add `record: none` to the yaml's "
            "`net` if its settings are surely the file's"
        )
    bound = inspect.signature(net.func).bind(**net.keywords)
    bound.apply_defaults()
    for key, value in (content.settings or {}).items():
        if key in TRAINING_ONLY:
            continue
        ours = bound.arguments.get(key, "nothing of that name")
        if (list(ours) if isinstance(ours, tuple) else ours) != (list(value) if isinstance(value, tuple) else value):
            raise ValueError(
                f"need {name} made with {short(key)}={ours}, got {short(value)}: set it in the denoiser's yaml"
            )


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) < 100 and all(isinstance(v, PLAIN) for v in value)
    return isinstance(value, PLAIN)


def _collect(module: Any, prefix: str, into: dict[str, Tensor], visited: set[int], depth: int) -> None:
    """Put parameters and buffers into `into` under their dotted names, as in a state dict."""
    nested = not isinstance(module, _Object) or depth > DEPTH or id(module) in visited
    if nested or len(visited) + len(into) > PARTS:
        raise Refused("its modules are nested in a way that no network is")
    visited.add(id(module))
    for kind in ("_parameters", "_buffers"):
        for name, value in module.plain(kind, dict).items():
            if value is None:
                continue
            if not isinstance(value, Tensor) or not isinstance(name, str) or "." in name:
                raise Refused(f"its {kind} hold something other than named tensors")
            into[prefix + name] = value
    for name, child in module.plain("_modules", dict).items():
        if not isinstance(name, str) or len(name) > 100 or "." in name:
            raise Refused("a module has no name")
        if child is not None:
            _collect(child, f"{prefix}{name}.", into, visited, depth + 1)


class _Object:
    """A module in the file: the name of its class and its attributes."""

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
        """The attribute of this name, or an empty `kind` without one. Raises Refused for another type."""
        value = self.state.get(name)
        if value is not None and not isinstance(value, kind):
            raise Refused(f"a module's {name} is no {kind.__name__}")
        return kind() if value is None else value

    def modules(self) -> dict:
        """The child modules by name."""
        return self.plain("_modules", dict)


class _Reader(pickle.Unpickler):
    """Resolves the names in EDM pickles to stand-ins, made anew for every file. Every other name is refused."""

    def __init__(self, file: IO[bytes], limit: int):
        super().__init__(file)
        self.left = limit
        self.known: dict[str, Callable] = {
            "collections.OrderedDict": OrderedDict,
            "torch.nn.modules.container.ModuleDict": type("ModuleDict", (_Object,), {}),
            "torch_utils.persistence._reconstruct_persistent_obj": lambda meta: self.module(meta),
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            TENSOR: lambda *arguments: self.tensor(*arguments),
            STORAGE: lambda data: self.storage(data),
            "numpy.dtype": lambda *arguments: Kind(*arguments),
            "numpy.core.multiarray.scalar": lambda *arguments: number(*arguments),
            "numpy._core.multiarray.scalar": lambda *arguments: number(*arguments),
            "dnnlib.util.EasyDict": lambda *arguments: dict(*arguments),
        }

    def find_class(self, module: str, name: str) -> Any:
        return self.known.get(f"{module}.{name}") or refuse(f"it names {short(f'{module}.{name}')}")

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("it refers to objects outside of itself")

    def module(self, meta: Any) -> _Object:
        """A module from its record in the file, in the one version of it that EDM writes."""
        fields = ("type", "version", "module_src", "class_name", "state")
        if not isinstance(meta, dict) or set(meta) != set(fields):
            raise Refused("a persistent object has other fields than EDM writes")
        if (meta["type"], meta["version"]) != ("class", 6):
            raise Refused("a persistent object is of another version than 6")
        if not isinstance(meta["class_name"], str) or not meta["class_name"][:80].isidentifier():
            raise Refused("a persistent object has no class")
        return _Object(meta["class_name"][:80], meta["state"])

    def storage(self, data: Any) -> torch.UntypedStorage:
        """A storage, which the pickle holds as a torch file of its own. Only tensors are read from it."""
        if not isinstance(data, bytes) or data[:2] == b"PK":
            raise Refused("a storage is not in the format that EDM writes")
        self.left -= len(data)
        if self.left < 0:
            raise Refused("its storages repeat each other")
        head = legacy(io.BytesIO(data), STORAGES)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # typed storages are deprecated, not their files
                typed = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
                if not isinstance(typed, torch.storage.TypedStorage) or typed.dtype != torch.float32:
                    raise Refused("a storage holds something other than float32")
                raw = typed.untyped()
        except Refused:
            raise
        except UNREADABLE as error:
            raise Refused(f"a storage cannot be read ({type(error).__name__})") from None
        if head + 8 + raw.nbytes() != len(data):  # the count, then the numbers
            raise Refused("a storage is not what its bytes are")
        return raw

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        """A dense tensor that lies within its storage."""
        if not isinstance(storage, torch.UntypedStorage) or not isinstance(size, tuple) or not isinstance(offset, int):
            raise Refused("a tensor is not made of a storage, an offset and a size")
        dense = torch.empty(size, device="meta").stride()
        numel = torch.Size(size).numel()
        if tuple(stride) != dense and numel > 1:
            raise Refused("a tensor is not dense")
        if offset < 0 or 4 * (offset + numel) > storage.nbytes():
            raise Refused("a tensor reaches beyond its storage")
        return torch.empty(0).set_(storage, offset, size, dense)  # pyright: ignore[reportArgumentType, reportCallIssue]
