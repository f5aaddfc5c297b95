"""Frozen networks whose calls torch.compile makes: a norm and its activation are one kernel, and launches are fewer."""

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

BACKEND = "inductor"
VARIANTS = 64  # of one network: widths, with a gradient and without, shapes of noise labels, precisions
OPTIONS: dict[str, Any] = {"deterministic": True}  # no kernel is chosen by its time: another one would round otherwise
KEEPS = 2  # times what a plain call keeps for the backward pass, at most: also the inputs of convolutions
TWICE = ("double backward", "donated buffers")  # what torch says where a compiled network is differentiated twice


class Compiled:
    """A frozen network, called as the network is. Calls with so many images as in `widths` are compiled, each kind when
    it comes first. All other calls are the plain network's, and so are those within `plain_calls`: a probe of one image
    would compile it again.

    A compiled call rounds otherwise than a plain one, but which calls are compiled never depends on earlier ones.
    Derivatives of a compiled call are of first order. On a GPU a call without a gradient is one CUDA graph. One with a
    gradient is not: a purification keeps the activations of many calls at once, and a graph has memory for one.
    """

    plain: ClassVar[int] = 0  # how many `plain_calls` are open, in all threads: a backward pass has one of its own

    def __init__(self, net: nn.Module, widths: Collection[int]):
        from torch._dynamo import config, exc  # imported here, because it takes seconds
        from torch._functorch import config as autograd

        config.recompile_limit = max(VARIANTS, config.recompile_limit)
        autograd.donated_buffer = False  # a graph may be kept after its backward pass
        self.refusals = (exc.TorchDynamoException, exc.FailOnRecompileLimitHit)
        self.net, self.widths = net, frozenset(widths)
        make = functools.partial(torch.compile, net, fullgraph=True, dynamic=False, backend=BACKEND)
        own = BACKEND == "inductor"  # other backends, of tests, have no options
        self.differentiable: Callable[..., Tensor] = make(options=OPTIONS if own else None)
        self.constant: Callable[..., Tensor] = make(options={**OPTIONS, "triton.cudagraphs": True} if own else None)

    def __call__(self, x: Tensor, *labels: Tensor) -> Tensor:
        """net(x, *labels), x (B,...). Raises ValueError for a network that torch.compile does not take."""
        if len(x) not in self.widths or Compiled.plain:
            return self.net(x, *labels)
        try:
            if torch.is_grad_enabled() and x.requires_grad:
                return self.differentiable(x, *labels)
            return self.constant(x, *labels).clone()  # the next call of a CUDA graph overwrites its output
        except self.refusals as error:
            reason = str(error).strip().partition("\n")[0]
            found = f"{type(self.net).__name__}, of which it says: {reason}"
            raise ValueError(f"need networks that torch.compile takes, got {found}: set compile=false") from error

    def __deepcopy__(self, memo: Any) -> None:
        """None: a copy of a network is not compiled."""


@contextmanager
def plain_calls() -> Iterator[None]:
    """Within it, no call is compiled: for gradients that are differentiated again, and for hooks inside a network."""
    Compiled.plain += 1
    try:
        yield
    finally:
        Compiled.plain -= 1


@contextmanager
def differentiated_once() -> Iterator[None]:
    """Turns torch's error about a compiled network that is differentiated twice into a ValueError of one line."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in TWICE):
            raise
        raise ValueError(
            "need networks that are differentiated once for compile=true, got a purifier that differentiates them "
            "itself without dp.diffusion.guided.inner_gradient: use that, or set compile=false"
        ) from error


def check_compiler(device: str) -> None:
    """Raises ValueError if what torch.compile needs for a device is not installed."""
    if device.startswith("cuda"):
        if importlib.util.find_spec("triton") is None:
            raise ValueError("need Triton for compile=true on a GPU, got none: install it, or set compile=false")
    elif shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise ValueError("need a C++ compiler for compile=true, got no g++: install one, or set compile=false")
