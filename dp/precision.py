"""The arithmetic of frozen networks: their weights are cast once, and their input at every call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}  # tf32: only of products


class Wide(nn.Module):
    """A module whose weights are not cast: a narrow noise level would be another noise level."""


class WideLinear(Wide, nn.Linear):
    """A linear layer of embeddings, whose weights are not cast."""


def cast(net: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of a frozen network. Buffers, `Wide` modules and batch norms keep theirs: they cost no time.

    Buffers widen what they meet, such as an image that is normalized by a mean and a std. So every convolution and
    linear layer casts its input, too.
    """
    for module in net.modules():
        if not isinstance(module, Wide | _BatchNorm):
            for p in module.parameters(recurse=False):
                if p.is_floating_point():
                    p.data = p.data.to(dtype)
            if dtype != torch.float32 and isinstance(module, _ConvNd | nn.Linear):
                module.register_forward_pre_hook(_narrow_input, with_kwargs=True)


def _narrow_input(module: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
    """The tensors that a convolution or a linear layer is given, in the dtype of its weights."""

    def narrow(value: Any) -> Any:
        return narrowed(value, module) if isinstance(value, Tensor) else value

    return tuple(map(narrow, given)), {name: narrow(value) for name, value in named.items()}


def narrowed(x: Tensor, net: nn.Module) -> Tensor:
    """x in the dtype of a network's weights, as a new tensor if it differs; of a network without weights x itself."""
    for module in net.modules():
        if not isinstance(module, Wide | _BatchNorm):
            for p in module.parameters(recurse=False):
                return x.to(p.dtype)
    return x


@contextmanager
def tensor_cores(on: bool) -> Iterator[None]:
    """Within it, if `on`, float32 products on a GPU are TF32: their factors are rounded to 11 bits."""
    if not on:
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
