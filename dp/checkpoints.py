"""Weights: find the file, check its hash, read tensors only. Nothing in a file is ever executed."""

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

ASSETS = Path(__file__).parent / "assets"


def cache_folder() -> Path:
    """`DP_CACHE`, or `dp` in the user's cache folder."""
    if "DP_CACHE" in os.environ:
        return Path(os.environ["DP_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "dp"


def locate(file: str, url: str | None = None, megabytes: float | None = None) -> Path:
    """The path of `file` among the embedded assets or in the cache folder.

    Raises FileNotFoundError, in one line that names the file, its address, its size and the folder, where it is in
    neither.
    """
    for folder in (ASSETS, cache_folder()):
        if (folder / file).is_file():
            return folder / file
    size = "" if megabytes is None else f" ({megabytes:g} MB)"
    origin = "" if url is None else f", published at {url}"
    raise FileNotFoundError(
        f"missing weights: need {file}{size}{origin}; put it into {cache_folder()} (or set DP_CACHE)"
    )


def load(
    net: nn.Module | None, file: str, sha256: str | None = None, url: str | None = None, megabytes: float | None = None
) -> nn.Module:
    """`net` with the tensors of a safetensors file, strictly: no name missing, none left over; half precision is
    widened to float32.

    `sha256`: the expected hash, or None where none is known. Raises ValueError for a wrong hash, a torn file or names
    that do not fit, FileNotFoundError for a missing file.
    """
    path = locate(file, url, megabytes)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"need {path} with SHA-256 {sha256[:12]}..., got {found[:12]}...: delete it and fetch it again"
        )
    if net is None or path.suffix != ".safetensors":
        raise ValueError(f"need weights as .safetensors, got {path.name}: this version does not read that format")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"need a whole safetensors file, got {path} ({error}): delete it and fetch it again") from None
    names = set(net.state_dict())
    if names != set(tensors):
        odd = sorted(names ^ set(tensors))
        raise ValueError(
            f"need {path.name} to hold the tensors of {type(net).__name__}, got {len(odd)} that differ, e.g. {odd[0]}"
        )
    odd = [k for k, v in net.state_dict().items() if v.shape != tensors[k].shape]
    if odd:
        raise ValueError(f"need {odd[0]} of another shape for {type(net).__name__}, got {path.name} with other sizes")
    net.load_state_dict({k: v.float() if v.dtype in (torch.float16, torch.bfloat16) else v for k, v in tensors.items()})
    return net
