"""Objects that a Python program gives to `dp.evaluate`. A configuration names them by the hash of their content.

They live in this process only. So a run with such objects has one worker, and only Python can repeat it.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.files.cache import cache_folder
from dp.output import record
from dp.runs.fingerprint import fingerprint
from dp.subset import Subset

_held: dict[str, Any] = {}


def option(node: dict) -> str:
    """The name of the option that stands for a given object, by its node."""
    return f"given-{node['name']}" if node["name"].isidentifier() else "given"  # of a lambda


def folder(nodes: dict[str, dict]) -> Path:
    """Write the yamls of given objects, by their groups, into a folder for --config-dir, and return it."""
    root = cache_folder() / "given" / fingerprint(nodes)[:10]
    for group, node in nodes.items():
        path = root / group / f"{option(node)}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        record.write_atomic(path, yaml.safe_dump(node, sort_keys=False).encode())
    return root


def hold(value: Any) -> str:
    """Keep an object for the runs of this process and return its fingerprint. Networks are copied first."""
    sha256 = fingerprint(value)
    _held[sha256] = copy.deepcopy(value) if isinstance(value, nn.Module) else value
    return sha256


def classifier(name: str, sha256: str, taps: Sequence[str] = ()) -> Classifier:
    """A given network as a classifier, or a given `Classifier`. `taps`: see `Classifier`. See `_found` for errors."""
    net = copy.deepcopy(_found(name, sha256))
    return net if isinstance(net, Classifier) else Classifier(net, taps)


def denoiser(name: str, sha256: str) -> Denoiser:
    """A given denoiser. See `_found` for errors."""
    return copy.deepcopy(_found(name, sha256))


def purifier(name: str, sha256: str) -> Callable:
    """A given purifier. See `_found` for errors."""
    found = _found(name, sha256)
    return copy.deepcopy(found) if isinstance(found, nn.Module) else found


def images(name: str, sha256: str) -> Subset:
    """Given images with their labels and ids. See `_found` for errors."""
    return _found(name, sha256)


def _found(name: str, sha256: str) -> Any:
    """Raises ValueError if this process was not given the object."""
    if sha256 not in _held:
        raise ValueError(
            f"need {name} ({sha256[:10]}), which a Python program gave to dp.evaluate, got a process without it: call "
            "dp.evaluate again with it"
        )
    return _held[sha256]
