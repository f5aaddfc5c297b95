"""Read the tensors of a weights file, whatever its format, and fit them to a network strictly.

Nothing in a file is ever executed.
"""

import io
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dp.files.cache import Asset, locate, verify
from dp.weights.edm_pickle import EDMPickle, check_made_by, edm
from dp.weights.pickle_scan import STORAGES, UNREADABLE, Kind, Refused, legacy, number, scan, short

PREFIXES = ("", "module.", "model.", "module.0.", "module.model.")  # of DataParallel and normalizing wrappers
NAMES = (  # the only names in public torch files
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter", "torch.Size", "torch.device", *STORAGES,
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype",
    "_codecs.encode", "argparse.Namespace",
)  # fmt: skip


def read(path: Path) -> Any:
    """The content of a weights file: a dict of tensors, a training checkpoint that holds one, or an EDMPickle.

    The format is recognized by the first bytes: safetensors, torch's zip archive (mapped, not copied), torch's older
    format, EDM's plain pickle. Raises ValueError, in one line, for a file of no such format, for a damaged file, and
    for a file that names anything that weights do not need.
    """
    if path.is_dir():
        raise ValueError(f"need a file with weights, got the directory {path}: move it away and put the file there")
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if head[8:9] == b"{":
            return load_file(path)
        if head[:4] == b"PK\x03\x04":
            return _zip(path)
        if head[:1] == b"\x80":
            return _old(path) if _is_old(path) else edm(path)
    except SafetensorError as error:
        raise ValueError(f"need a whole safetensors file, got {path} ({error}): put a whole one there") from None
    except (zipfile.BadZipFile, NotImplementedError, *UNREADABLE) as error:
        why = error if isinstance(error, Refused) else f"it is torn ({type(error).__name__})"
        raise ValueError(f"need weights and nothing else, got {path}: {why}; nothing was executed") from None
    kind = "a web page" if head.lstrip()[:1] == b"<" else "no weights file"
    raise ValueError(f"need a whole safetensors file, torch file or EDM pickle, got {path} ({kind}): put one there")


def load(
    net: nn.Module | Callable[[], nn.Module],
    file: str,
    sha256: str | None = None,
    url: str | Sequence[str] | None = None,
    megabytes: float | None = None,
    entry: str | int | None = None,
    wrapper: str | None = None,
    record: str | None = None,
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> nn.Module:
    """Return `net` with the tensors of an embedded or cached file. Names and shapes must match exactly.

    `net`: a module, or a partial that makes one (`_partial_: true`), which takes no memory before the tensors are read.
    `file`, `url`, `megabytes`: see `Asset`. `sha256`: the expected hash; without one, the hash at first use is required
    from then on. `entry`: the part of a training checkpoint that holds the weights; the tensors of a score-SDE `ema`
    get their names from its `model`. `wrapper`: the preconditioner that an EDM pickle must hold. `record`: `none` takes
    an EDM pickle that does not record its network's settings, so that only the yaml tells them. `rename`: maps the
    file's names to the network's. Raises ValueError for a wrong hash, a file of another kind or one that does not fit,
    and FileNotFoundError for a missing file.
    """
    if record not in (None, "none"):
        raise ValueError(f"need record: none, or no such key, got record={record!r}")
    path = locate(asset := Asset(file, url, megabytes, sha256))
    verify(path, asset)
    content, made = read(path), net
    if not isinstance(net, nn.Module):
        with torch.device("meta"):
            net = net()
    if isinstance(content, EDMPickle):
        check_made_by(content, made, wrapper, record, path.name)
        state = content.state
    elif wrapper is not None and path.suffix != ".safetensors":  # weights of our own training have no wrapper
        raise ValueError(f"need an EDM pickle with {wrapper}, got {path.name}, which is another kind of file")
    else:
        state = _entry(content, entry, net, path.name) if path.suffix != ".safetensors" else content
    state = rename(state) if rename is not None else state
    return fit(net, state, path.name)


def fit(net: nn.Module, state: Mapping[str, Tensor], name: str) -> nn.Module:
    """Return `net` with the tensors of `state` in place of its own, in its own precision.

    `name`: the file's name, for messages. A prefix that all names share (`module.`, `model.`) is removed. Raises
    ValueError where names, shapes or kinds of number differ.
    """
    own = net.state_dict()
    state = next((s for s in (_unprefixed(state, p) for p in PREFIXES) if set(s) == set(own)), state)
    kind = type(net).__name__
    if set(own) != set(state):
        odd = sorted(set(own) ^ set(state))
        raise ValueError(f"need {name} to hold the tensors of {kind}, got {len(odd)} that differ, e.g. {short(odd[0])}")
    for key, tensor in own.items():
        new = state[key]
        if new.shape != tensor.shape:
            sizes = f"{tuple(tensor.shape)}, got {tuple(new.shape)}"
            raise ValueError(f"need {key} of another shape for {kind} in {name}: {sizes}")
        if new.layout != torch.strided or new.is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"need {key} as dense {tensor.dtype} numbers in {name}, got {new.layout}, {new.dtype}")
    net.load_state_dict({k: state[k].to(v.dtype) for k, v in own.items()}, assign=True)
    left = [k for k, v in (*net.named_parameters(), *net.named_buffers()) if v.is_meta]
    assert not left, f"{kind} has tensors that no file holds ({left[0]}): leave `_partial_` out of its yaml"
    return net


def _unprefixed(state: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    if not all(isinstance(k, str) and k.startswith(prefix) for k in state):
        return {}
    return {k.removeprefix(prefix): v for k, v in state.items()}


def _entry(content: Any, entry: str | int | None, net: nn.Module, name: str) -> dict[str, Tensor]:
    """The named tensors under `entry`. A list without names under `ema` gets names by score-SDE's order."""
    if entry is not None:
        entries: dict = dict(enumerate(content)) if isinstance(content, list) else {}
        entries = content if isinstance(content, dict) else entries
        if entry not in entries:
            names = short(", ".join(map(str, entries))) or "no entries"
            raise ValueError(f"need the entry {entry!r} in {name}, got {names}")
        part = entries[entry]
        content = _named_ema(entries, part, net, name) if isinstance(part, dict) and "shadow_params" in part else part
    if not isinstance(content, dict):
        raise ValueError(f"need a dictionary of tensors in {name}, got {type(content).__name__}")
    odd = sorted(str(k) for k, v in content.items() if not isinstance(v, Tensor) or not isinstance(k, str))
    if odd:
        others = short(", ".join(odd))
        raise ValueError(f"need tensors by name in {name}, got {others} beside them: name its entry in the yaml")
    return content


def _named_ema(content: dict, part: dict, net: nn.Module, name: str) -> dict[str, Tensor]:
    """The moving average with names. The file has it as a list in the order of the network's trainable parameters.

    That order must be the network's own. Buffers and the frozen frequencies of Fourier features come from `model`.
    """
    model, average = content.get("model"), part["shadow_params"]
    if not isinstance(model, dict) or not isinstance(average, list):
        raise ValueError(f"need a list of averages and the `model` that names it in {name}, got other entries")
    model = {str(k).removeprefix("module."): v for k, v in model.items()}
    names = [k for k, p in net.named_parameters() if p.requires_grad]
    if names != [k for k in model if k in set(names)]:
        raise ValueError(
            f"need `model` of {name} in the order of {type(net).__name__}, got another: the averages follow it"
        )
    shapes = [v.shape if isinstance(v, Tensor) else None for v in average]
    if shapes != [model[k].shape if isinstance(model[k], Tensor) else None for k in names]:
        raise ValueError(f"need {len(names)} averages of the shapes of `model` in {name}, got {len(average)} others")
    return dict(zip(names, average, strict=True)) | {k: v for k, v in model.items() if k not in set(names)}


def _zip(path: Path) -> Any:
    """The content of a torch archive, mapped into memory.

    Torch's reader must see exactly what is checked here. Therefore members must be stored without compression, in one
    folder, under different names, with one directory, and undamaged.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [m.filename.casefold() for m in members]
        folder = members[0].filename.partition("/")[0] if members else ""
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
            raise Refused("its archive is packed")
        if len(set(names)) < len(names) or not all(m.filename.startswith(folder + "/") for m in members):
            raise Refused("its archive is not as torch writes it")
        if f"{folder}/data.pkl" not in archive.namelist() or not _one_directory(path, archive.start_dir):
            raise Refused("its archive is not as torch writes it")
        if (damaged := archive.testzip()) is not None:
            raise Refused(f"{short(damaged)} in it is damaged")
        scan(io.BytesIO(archive.read(f"{folder}/data.pkl")), NAMES)
    content = _torch_load(path, mapped=True)
    _bounded(content, size)
    return content


def _one_directory(path: Path, start: int) -> bool:
    """True if the records at the archive's end all say that its directory begins at `start` and ends before them."""
    with path.open("rb") as file:
        tail = path.stat().st_size - 22  # the end record, without a comment
        file.seek(max(0, tail - 76))
        last = file.read()
    if last[-22:-18] != b"PK\x05\x06":
        return False
    length, begin = struct.unpack("<II", last[-10:-2])
    if last[-42:-38] == b"PK\x06\x07":  # behind a 64-bit end record and its locator
        length, begin, tail = *struct.unpack("<QQ", last[-58:-42]), tail - 76
    return begin == start and begin + length == tail


def _old(path: Path) -> Any:
    """The content of torch's format before 1.6: five pickles, then each storage's length and raw numbers."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        left = size - legacy(view, NAMES)
    content = _torch_load(path, mapped=False)
    if _bounded(content, size) != left:  # an unfilled storage would expose old memory
        raise Refused("its tensors are not all of its numbers")
    return content


def _is_old(path: Path) -> bool:
    """True if a plain pickle begins with torch's magic number (a LONG1 of 10 bytes)."""
    with path.open("rb") as file:
        return file.read(14)[2:] == pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[2:14]


class _Namespace:
    """Stands for the command line that a training checkpoint may hold."""


def _torch_load(path: Path, mapped: bool) -> Any:
    """Read tensors, numbers, text and containers of them. Stand-ins read numpy's numbers, such as a learning rate."""
    names: list[Any] = [(number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    names += [(Kind, "numpy.dtype"), (_Namespace, "argparse.Namespace")]
    try:
        with torch.serialization.safe_globals(names):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Refused:
        raise
    except UNREADABLE as error:
        raise Refused(f"it cannot be read ({type(error).__name__})") from None


def _bounded(content: Any, size: int) -> int:
    """Bytes of the storages of all tensors, with 8 for the length of each.

    Raises Refused for tensors that would take more memory than the file has (repeated views, strides of zero) and for
    containers that are not what they seem. A checkpoint may name a tensor in more than one place, hence the factor 4.
    """
    left, visited, stack, storages = 4 * size, set(), [content], {}
    while stack:
        node = stack.pop()
        if isinstance(node, Tensor):
            raw, took = node.untyped_storage(), node.numel() * node.element_size()
            if node.layout != torch.strided or took > raw.nbytes():
                raise Refused("a tensor is not dense")
            storages[raw._cdata] = 8 + raw.nbytes()
            left -= took
        elif isinstance(node, dict | list | tuple) and id(node) not in visited:
            visited.add(id(node))
            if hasattr(node, "__dict__") and set(vars(node)) - {"_metadata"}:
                raise Refused("a dictionary has attributes")
            stack.extend(dict.values(node) if isinstance(node, dict) else node)
        if left < 0:
            raise Refused("its tensors would take more memory than the file has")
    return sum(storages.values())
