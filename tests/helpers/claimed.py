"""Tensors that claim to be on a GPU and lie on the CPU: what a GPU would wait for, or refuse, is seen without one.

A storage carries a mark that says on which device it claims to be. What Python code sees (`x.device`, `x.to(y)`,
`device=` of a factory) follows the marks, and every operation is computed on the CPU. So values have the bits of a run
on the CPU, and the code takes the branches of a GPU.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda", 99)  # no test on a true GPU has this one
ATEN = torch.ops.aten

# Operations whose result, or its shape, the host must know: it waits for the device.
WAITS = {
    ATEN._local_scalar_dense: "item, bool or float",
    ATEN.equal: "torch.equal",
    ATEN.nonzero: "nonzero",
    ATEN.masked_select: "masked_select",
    ATEN.bincount: "bincount",
    ATEN._unique2: "unique",
    ATEN.unique_dim: "unique",
    ATEN.unique_consecutive: "unique",
    ATEN._linalg_svd: "linalg.svd, which asks whether it has converged",
    ATEN._linalg_eigh: "linalg.eigh, which asks whether it has converged",
    ATEN._linalg_solve_ex: "linalg.solve, which asks whether it is singular",
}
CHECKED_ON_CPU = (F.one_hot,)  # looks at its numbers on the CPU alone, if it is told the number of classes
FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray)
TO_HOST = {Tensor.tolist: "tolist", Tensor.cpu: "cpu"}
ENGINE = "_engine_run_backward"  # of torch.autograd: what every backward pass calls
DEVICE, IS_CUDA, IS_CPU = (getattr(Tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu"))


class Mixed(RuntimeError):
    """An operation has tensors of both devices."""


class Notes:
    """What was seen: how often the host waits, by reason and place in dp."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.quiet = False  # True: nothing is noted

    def wait(self, reason: str) -> None:
        if not self.quiet:
            self.waits[f"{place()}: {reason}"] += 1


def place() -> str:
    """The innermost line of dp that is being run, and the function."""
    frame, outer = sys._getframe(1), "outside dp"
    while frame is not None:
        name = frame.f_code.co_filename.replace("\\", "/")
        if "/tests/helpers/claimed.py" not in name and ("/dp/" in name or "/tests/" in name):
            inside = "dp/" + name.rpartition("/dp/")[2] if "/dp/" in name else "tests/" + name.rpartition("/tests/")[2]
            return f"{inside}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return outer


def mark(tensor: Tensor) -> str | None:
    """`cuda`, `cpu`, or None for a tensor that was made inside an operation and is where the operation is."""
    return getattr(tensor.untyped_storage(), "claims", None)


def claim(tensor: Tensor, device: str = "cuda") -> Tensor:
    """The tensor, which from now on claims to be there, with all that share its storage."""
    tensor.untyped_storage().claims = device  # pyright: ignore[reportAttributeAccessIssue]
    return tensor


def claim_module(module: nn.Module) -> None:
    """All weights and buffers of a module."""
    for tensor in (*module.parameters(), *module.buffers()):
        claim(tensor)


def tensors_in(*given: Any) -> list[Tensor]:
    """All tensors, also of lists, tuples and mappings, which may lie in one another."""
    found: list[Tensor] = []
    for one in given:
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, list | tuple):
            found += tensors_in(*one)
        elif isinstance(one, dict):
            found += tensors_in(*one.values())
    return found


class Operations(TorchDispatchMode):
    """Every operation, also those inside others and in a backward pass."""

    def __init__(self, notes: Notes):
        super().__init__()
        self.notes = notes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # of `Calls`, which a backward pass has switched on
            return self.done(func, args, kwargs or {})

    def done(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operation, computed; what it makes is where its tensors are."""
        packet, given = func.overloadpacket, tensors_in(args, kwargs)
        marks = [mark(t) for t in given]
        on_gpu = "cuda" in marks
        if on_gpu:
            self.check(packet, args, given, marks)
        out = func(*args, **kwargs)
        if on_gpu:
            for made in tensors_in(out):
                if mark(made) is None:
                    claim(made)
        return out

    def check(self, packet: Any, args: Any, given: list[Tensor], marks: list[str | None]) -> None:
        """Note what the host waits for; raises Mixed for tensors of both devices."""
        if packet in (ATEN.copy_, ATEN._to_copy):
            into, source = (marks[0], marks[-1]) if packet is ATEN.copy_ else (None, None)
            if into != source and "cpu" in (into, source) and not (given[-1].dim() == 0 and source == "cpu"):
                self.notes.wait("a blocking copy into a tensor")
            return
        if packet in WAITS:
            self.notes.wait(WAITS[packet])
        if packet in (ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_, ATEN._unsafe_index):
            self.check_index(args, packet is not ATEN.index)
            given = [t for t in given if all(t is not one for one in args[1])]
        elsewhere = [t for t in given if mark(t) == "cpu" and (t.dim() > 0 or packet in (ATEN.cat, ATEN.stack))]
        if elsewhere:
            found = ", ".join(f"{tuple(t.shape)}" for t in elsewhere)
            raise Mixed(f"{place()}: {packet} has tensors of a GPU and of the CPU, {found}")

    def check_index(self, args: Any, put: bool) -> None:
        index = [one for one in args[1] if isinstance(one, Tensor)]
        one_value = put and len(index) == 1 and args[2].numel() == 1
        if any(one.dtype in (torch.bool, torch.uint8) for one in index) and not one_value:  # else it is a masked fill
            self.notes.wait("an index by a mask")
        elif any(mark(one) != "cuda" for one in index):
            self.notes.wait("an index that lies on the CPU")


class Calls(TorchFunctionMode):
    """What Python code asks torch for."""

    def __init__(self, notes: Notes):
        super().__init__()
        self.notes = notes
        self.in_backward = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func.__name__ == "__get__" and func not in (DEVICE, IS_CUDA, IS_CPU):
            return func(*args)  # a shape, a dtype, ...
        if func in (DEVICE, IS_CUDA, IS_CPU):
            on_gpu = mark(args[0]) == "cuda"
            return {DEVICE: GPU if on_gpu else torch.device("cpu"), IS_CUDA: on_gpu, IS_CPU: not on_gpu}[func]
        given = tensors_in(args, kwargs)
        if not self.in_backward:
            for tensor in given:
                if mark(tensor) is None:
                    claim(tensor, "cpu")  # made before all this, or by a library
        if func is Tensor.to:
            return self.moved(*args, **kwargs)
        if func is Tensor.cuda:
            return self.moved(args[0], GPU)
        if func in (Tensor.numpy, Tensor.__array__) and mark(args[0]) == "cuda":
            raise TypeError(f"{place()}: a tensor on a GPU is no numpy array")
        if func in TO_HOST and mark(args[0]) == "cuda":
            self.notes.wait(TO_HOST[func])
            return claim(args[0].clone(), "cpu") if func is Tensor.cpu else func(*args)
        if func is Tensor.pin_memory:
            kwargs, out = {}, args[0].clone()
            out.untyped_storage().pinned = True  # pyright: ignore[reportAttributeAccessIssue]
            return claim(out, "cpu")
        if func is Tensor.is_pinned:
            return getattr(args[0].untyped_storage(), "pinned", False)
        device, pin = kwargs.pop("device", None), kwargs.pop("pin_memory", False)
        before, self.notes.quiet = self.notes.quiet, func in CHECKED_ON_CPU and len(args) + len(kwargs) > 1
        out = func(*args, **kwargs)
        self.notes.quiet = before
        on_gpu = any(mark(t) == "cuda" for t in given) if device is None else torch.device(device).type == "cuda"
        if on_gpu and (func is Tensor.new_tensor or (func in FROM_DATA and not given)):
            self.notes.wait("a tensor made of numbers of the host")
        if on_gpu and func in FROM_DATA and given and mark(given[0]) != "cuda":
            self.notes.wait("a blocking copy to the GPU")
            out = out.clone()
        for made in tensors_in(out):
            if pin:
                made.untyped_storage().pinned = True  # pyright: ignore[reportAttributeAccessIssue]
            if mark(made) is None and (on_gpu or not self.in_backward):
                claim(made, "cuda" if on_gpu else "cpu")
            elif device is not None and on_gpu and func not in FROM_DATA:
                claim(made)
        return out

    def moved(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """tensor.to(...), with a copy that is noted where the claimed device changes."""
        copy = kwargs.pop("copy", False)
        source = wanted = mark(tensor)
        dtype, non_blocking = tensor.dtype, False
        for given in (*args, *kwargs.values()):
            if isinstance(given, Tensor):
                wanted, dtype = mark(given) or "cpu", given.dtype
            elif isinstance(given, torch.dtype):
                dtype = given
            elif isinstance(given, str | torch.device):
                wanted = torch.device(given).type
            elif isinstance(given, bool):
                non_blocking = given
        out = Tensor.to(tensor, dtype=dtype, copy=copy or wanted != source)
        if wanted != source:
            claim(out, wanted or "cpu")
            pinned = getattr(tensor.untyped_storage(), "pinned", False)
            if wanted == "cuda" and not (non_blocking and pinned):
                self.notes.wait("a blocking copy to the GPU")
            if wanted == "cpu":
                self.notes.wait("a copy to the host")
        return out


@contextmanager
def claimed_gpu() -> Iterator[Notes]:
    """Within it, tensors that claim to be on a GPU behave so."""
    notes = Notes()
    calls, engine = Calls(notes), getattr(torch.autograd, ENGINE)

    def backward(*args: Any, **kwargs: Any) -> Any:
        """A backward pass, in which code of Python's own autograd functions is watched, too."""
        before, calls.in_backward = calls.in_backward, True
        try:
            with calls:
                return engine(*args, **kwargs)
        finally:
            calls.in_backward = before

    setattr(torch.autograd, ENGINE, backward)
    try:
        with Operations(notes), calls:
            yield notes
    finally:
        setattr(torch.autograd, ENGINE, engine)
