"""Which files a configuration needs, and which of them are missing."""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from dp.files.cache import Asset, is_there


def _robustbench(**keys: Any) -> Asset:
    from dp.weights.zoo import robustbench_asset  # imports torch: only where a configuration names such a model

    return robustbench_asset(**keys)


def _timm(**keys: Any) -> Asset:
    from dp.weights.zoo import timm_asset

    return timm_asset(**keys)


# Models whose weights are named by a library: from the keys of such a node to its asset.
ZOO: dict[str, Callable[..., Asset | None]] = {
    "dp.weights.zoo.robustbench": _robustbench,
    "dp.weights.zoo.timm": _timm,
}

ASSET_KEYS = tuple(field.name for field in fields(Asset))


def needed(config: Any) -> list[Asset]:
    """Every file that a plain configuration (mappings and lists) names, embedded files too, in order, each once.

    A model whose file is named by RobustBench or timm costs the import of that library.
    """
    assets: dict[Asset, None] = {}
    for node in _mappings(config):
        target = node.get("_target_")
        if isinstance(target, str) and target in ZOO:
            asset = ZOO[target](**{k: v for k, v in node.items() if not re.fullmatch("_.*_", k)})
        elif isinstance(node.get("file"), str):
            asset = Asset(**{k: node[k] for k in ASSET_KEYS if node.get(k) is not None})
        else:
            continue
        if asset is not None:
            assets[asset] = None
    return list(assets)


def missing(config: Any) -> list[Asset]:
    """The needed files that are neither embedded nor in the cache folder."""
    return [asset for asset in needed(config) if not is_there(asset)]


def _mappings(node: Any) -> Iterator[dict]:
    """All mappings in plain data but for tables of values by dataset: what the dataset needs is in the keys beside."""
    if isinstance(node, dict):
        yield node
        children = [child for key, child in node.items() if key != "per_dataset"]
    else:
        children = node if isinstance(node, list | tuple) else ()
    for child in children:
        yield from _mappings(child)
