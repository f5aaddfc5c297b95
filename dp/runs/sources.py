"""What can change a row and stands in no key: code, and files of weights whose content no key states."""

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from dp.files.cache import is_there, locate
from dp.output import record
from dp.weights.needed import needed


def sources_hash(config: dict) -> str:
    """SHA-256 of dp's code, of the plug-ins' source files, and of weights files without a declared SHA-256.

    It is compared when a run goes on: all rows of a run come from the same sources.
    """
    return _with_files(record.code_hash(), config)


def training_hash(config: dict) -> str:
    """SHA-256 of what stands in no key of a training: dp's code, the plug-ins' source files, and the weights without a
    declared SHA-256 that it reads.

    The weights that it writes, maybe into dp/assets/, do not count.
    """
    read = {key: config[key] for key in ("dataset", "training", "others", "plugins")}
    return _with_files(record.code_hash(weights=False), read)


def _with_files(code: str, config: dict) -> str:
    unstated = [locate(asset) for asset in needed(config) if asset.sha256 is None and is_there(asset)]
    digest = hashlib.sha256(code.encode())
    for path in (*_plugin_files(config["plugins"]["modules"]), *unstated):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _plugin_files(modules: Sequence[str]) -> Iterator[Path]:
    """The source files of modules outside dp, by their top names. A package counts with all its files."""
    for name in sorted({*modules} - {"dp"}):
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        for folder in spec.submodule_search_locations or []:
            yield from sorted(Path(folder).rglob("*.py"))
        if not spec.submodule_search_locations and spec.origin is not None and Path(spec.origin).is_file():
            yield Path(spec.origin)
