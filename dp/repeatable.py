"""Settings under which a GPU computes the same bytes again, and the operations that torch cannot repeat."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.backends import cuda, cudnn
from torch.utils import deterministic

WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its products with a workspace of this size
WARNED = re.compile(r"(\w+) does not have a deterministic implementation")


def set_repeatable(device: str) -> None:
    """Make the rows of a GPU repeat byte for byte as far as torch can, and its float32 not TF32. A CPU needs nothing.

    Call it before the first network, because cuBLAS reads its setting when it starts. Attention is computed by its
    formula: its faster kernels add the gradient in any order. Where torch has no deterministic algorithm it warns, see
    `noted`.
    """
    if not device.startswith("cuda"):
        return
    os.environ.setdefault(*WORKSPACE)
    _set(
        {
            "benchmark": False,
            "deterministic": True,
            "cudnn_tf32": False,
            "algorithms": (True, True),
            "filled": False,  # new memory is not filled: nothing reads it
            "attention": (False, False, False, True),
        }
    )


@contextmanager
def settings_kept() -> Iterator[None]:
    """After it, the settings that `set_repeatable` changes are what they were before."""
    before, variable = _settings(), os.environ.get(WORKSPACE[0])
    try:
        yield
    finally:
        _set(before)
        if variable is None:
            os.environ.pop(WORKSPACE[0], None)


@contextmanager
def noted(found: set[str]) -> Iterator[None]:
    """Within it, the names of operations that torch has no deterministic algorithm for are added to `found`, and its
    warnings about them are not shown. On a CPU torch has one for all that we use, and nothing is added.
    """
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, *where: Any, **more: Any) -> None:
            match = WARNED.search(str(message))
            if match is None:
                show(message, *where, **more)
            else:
                found.add(match[1])

        warnings.showwarning = note
        warnings.filterwarnings("default", message=f".*{WARNED.pattern}")
        yield


def _settings() -> dict[str, Any]:
    return {
        "benchmark": cudnn.benchmark,
        "deterministic": cudnn.deterministic,
        "cudnn_tf32": cudnn.allow_tf32,
        "algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "filled": deterministic.fill_uninitialized_memory,  # pyright: ignore[reportAttributeAccessIssue]
        "attention": (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
            cuda.math_sdp_enabled(),
        ),
    }


def _set(values: dict[str, Any]) -> None:
    cudnn.benchmark, cudnn.deterministic = values["benchmark"], values["deterministic"]
    cudnn.allow_tf32 = values["cudnn_tf32"]
    on, warn_only = values["algorithms"]
    torch.use_deterministic_algorithms(on, warn_only=warn_only)
    deterministic.fill_uninitialized_memory = values["filled"]  # pyright: ignore[reportAttributeAccessIssue]
    switches = cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp, cuda.enable_math_sdp
    for switch, value in zip(switches, values["attention"], strict=True):
        switch(value)
