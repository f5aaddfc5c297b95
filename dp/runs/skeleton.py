"""Networks without their weights: for what depends on their sizes alone, such as the cost of a run. No file is read."""

from typing import Any

import torch

from dp.diffusion.denoisers import Denoiser
from dp.runs.compose import make

LOAD = "dp.weights.checkpoints.load"
UNTRAINED = {  # loaders of networks whose weights a library names, and what makes these networks without weights
    "dp.weights.zoo.robustbench": "dp.weights.zoo.untrained",
    "dp.weights.zoo.timm": "dp.weights.zoo.untrained_timm",
}
GROUPS = ("classifier", "denoiser", "purifier")


def without_files(config: dict) -> dict:
    """The configuration with random weights in all networks of dp, and with gray images.

    A dataset whose yaml has no `shape` keeps its own images, and a network outside dp its own loader.
    """
    bare = {**config, **{group: _without_files(config[group]) for group in GROUPS}}
    dataset = config["dataset"]
    if "shape" in dataset:
        images = {"images": config["protocol"]["images"], "shape": dataset["shape"]}
        bare["dataset"] = {**dataset, "loader": {"_target_": "dp.datasets.gray", **images}}
    return bare


def _without_files(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_files(child) for child in node]
    if not isinstance(node, dict):
        return node
    if node.get("_target_") == LOAD:
        return {key: _without_files(value) for key, value in node["net"].items() if key != "_partial_"}
    target = UNTRAINED.get(node.get("_target_", ""))
    changed = {} if target is None else {"_target_": target}
    return {key: _without_files(value) for key, value in node.items()} | changed


def denoiser_on_meta(config: dict) -> Denoiser | None:
    """The denoiser of a configuration `without_files`. Its network is on the meta device, where it takes no memory."""
    node = config["denoiser"]
    if "_target_" not in node:
        return None
    modules = config["plugins"]["modules"]
    if "net" not in node:
        return make(node, modules=modules).to("meta")
    with torch.device("meta"):
        net = make(node["net"], modules=modules)
    return make({key: value for key, value in node.items() if key != "net"}, modules=modules, net=net)
