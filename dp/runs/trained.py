"""A training from its command: the recipe, the network in its adapter, frozen networks beside it, and where it goes."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.files.cache import ASSETS, cache_folder, digest, is_there, locate
from dp.purifiers.module import PurifierModule
from dp.runs import compose
from dp.runs.errors import unknown_option
from dp.runs.help import options
from dp.runs.sources import training_hash
from dp.runs.validate import check_call, check_kinds
from dp.subset import Subset
from dp.training.trainer import Training
from dp.weights import checkpoints
from dp.weights.needed import needed

MODELS = ("denoiser", "classifier", "purifier")  # what can be trained: a group of the configuration
# Keys of the training yaml that are no arguments of the training loop.
OWN = ("data", "files", "task", "others", "start", "precision", "threads", "embedded", "test_images")
UNKEYED = ("log_every", "save_every", "files", "test_images")  # keys of the training yaml that change no weight
WORDS = ("model=", "out=", "training=")  # words of the command that are no overrides of the configuration

Adapter = Denoiser | Classifier | PurifierModule


def composed(words: Sequence[str], config_dirs: Sequence[str] = ()) -> tuple[dict, str, Path | None]:
    """The configuration of a command, its `model` and its `out`. Raises ValueError for a wrong model, file name or
    recipe, and for a model without a network.

    The configuration has the nodes of `training.others` under `others`.
    """
    given = dict(w.split("=", 1) for w in words if w.startswith((*WORDS, "dataset=", *(f"{m}=" for m in MODELS))))
    model, out = given.get("model"), given.get("out")
    if model not in MODELS:
        raise ValueError(
            f"need {' or '.join(f'model={m}' for m in MODELS)}, got {f'model={model}' if model else 'none'}: --help"
        )
    if out is not None and not out.endswith(".safetensors"):
        raise ValueError(f"need out=FILE.safetensors, got out={out}: name a file")
    recipe, known = recipe_of(given, model, config_dirs), options("training", config_dirs)
    rest = [w for w in words if not w.startswith(WORDS)]
    training = [f"+training={recipe}"] if recipe in known else []
    config = compose.composed(*training, *(rest if training else without_training(rest)), config_dirs=config_dirs)
    check_network(config, model)
    if not training:
        raise ValueError(unknown_option("training", recipe, [*known]))
    check_whole(config["training"], recipe)
    others = others_of(config, config["training"].get("others") or {}, config_dirs)
    config = {**config, "others": others}
    check_recipe(config)
    chosen = [f"{group}={config['choices'][group]}" for group in ("dataset", *MODELS)]
    default = compose.composed(*training, *chosen, config_dirs=config_dirs)
    check_kinds({"training": config["training"]}, {"training": default["training"]})
    return config, model, Path(out) if out else None


def without_training(words: Sequence[str]) -> list[str]:
    """The words of a command that set nothing of the recipe."""
    return [w for w in words if not w.lstrip("+~").startswith("training.")]


def recipe_of(given: Mapping[str, str], model: str, folders: Sequence[str]) -> str:
    """The recipe's name: `training=...` if given, else that of the option that is trained, if it has one, else
    `<dataset>_<model>`. `given`: words of the command.
    """
    if "training" in given:
        return given["training"]
    dataset, known = given.get("dataset", "digits"), options("training", folders)
    own = [given[model], f"{dataset}_{given[model]}"] if model in given else []
    last = own[-1] if own and model == "purifier" else f"{dataset}_{model}"
    return next((name for name in own if name in known), last)


def check_network(config: dict, model: str) -> None:
    """Raises ValueError unless the model's yaml has a network to train."""
    net = compose.arguments(config[model]).get("net")
    if not isinstance(net, dict) or not net.get("net"):
        option = config["choices"][model]
        raise ValueError(
            f"need a network under {model}.net.net, got none in {model}={option}: choose {model}=... that names one"
        )


def check_whole(node: Mapping[str, Any], name: str) -> None:
    """Raises ValueError for the node `training` of a recipe that lacks a key which every training needs."""
    absent = [key for key in ("data", "task", "steps", "batch") if key not in node]
    if absent:
        nested = "training" in node
        advice = "make `# @package _global_` its first line" if nested else "docs/extending.md has an example"
        raise ValueError(f"need training.{absent[0]} in the recipe {name}, got a yaml without it: {advice}")


def others_of(config: dict, names: Any, folders: Sequence[str]) -> dict[str, dict]:
    """The nodes of the frozen networks of a recipe. `names`: {keyword of the task: group/option}.

    Raises ValueError for another group and for an option that does not exist.
    """
    if not isinstance(names, dict):
        raise ValueError(f"need training.others as a mapping, such as {{teacher: denoiser/digits}}, got {names!r}")
    nodes = {}
    for name, entry in names.items():
        group, _, option = str(entry).partition("/")
        if group not in MODELS or not option:
            form = ", ".join(f"{m}/NAME" for m in MODELS)
            raise ValueError(f"need training.others.{name} as one of {form}, got {entry}")
        known = options(group, folders)
        if option not in known:
            raise ValueError(f"training.others.{name}: {unknown_option(group, option, [*known])}")
        chosen = {"dataset": config["choices"]["dataset"], "purifier": "none", group: option}
        words = (f"{key}={value}" for key, value in chosen.items())
        nodes[name] = compose.composed(*words, config_dirs=folders)[group]
    return nodes


def key_of(config: dict, model: str) -> str:
    """The key of a training. Equal networks, data, recipes and weights at the start have equal keys.

    What changes no weight is not part of it: how often is logged and saved, and the number of test images.
    """
    node = {k: v for k, v in compose.arguments(config[model]).items() if k != "net"}
    recipe = {k: v for k, v in config["training"].items() if k not in UNKEYED}
    start = [digest(locate(asset)) for asset in needed(recipe.get("start")) if is_there(asset)]
    hashed = [config["dataset"]["name"], model, node, config[model]["net"]["net"], recipe, config["others"], start]
    key = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:10]
    return f"train-{config['dataset']['name']}-{model}-{key}"


def destination(config: dict, model: str, out: Path | None) -> Path:
    """The file for the weights: `out` if given, else in dp/assets/ for embedded weights, else in the cache folder.

    Raises ValueError if the configuration names a file of another format and `out` is not given.
    """
    if out is not None:
        return out
    file = config[model]["net"].get("file")
    if not isinstance(file, str) or not file.endswith(".safetensors"):
        raise ValueError(
            f"need out=FILE.safetensors, got none, and {model}.net.file={file} is another format: add out="
        )
    return (ASSETS if config["training"]["embedded"] else cache_folder()) / file


def unlike(config: dict, model: str, path: Path, sha256: str) -> str:
    """The overrides with which a run finds these weights, or "" if it finds them without."""
    node, words = config[model]["net"], []
    name = path.name if path.parent.absolute() in (ASSETS, cache_folder().absolute()) else str(path.absolute())
    if name != node.get("file"):
        words.append(f"{model}.net.file={name}")
    if node.get("sha256") not in (None, sha256):
        words.append(f"{model}.net.sha256={sha256}")
    return " ".join(words)


def adapter_of(config: dict, model: str, device: str) -> Adapter:
    """The configuration's adapter around a network with seeded weights, or with those of `training.start`.

    Raises ValueError for wrong settings and for a start file that does not fit the network.
    """
    node, start = compose.arguments(config[model]), config["training"].get("start")
    check_call(node["net"]["net"], f"{model}.net.net", config["plugins"]["modules"])
    torch.manual_seed(config["training"]["seed"])
    net = _make(config, node.pop("net")["net"])
    if isinstance(net, functools.partial):
        net = net()
    if start is not None:
        if not isinstance(start, dict):
            raise ValueError(f"need training.start as a mapping, such as {{file: ..., sha256: ...}}, got {start!r}")
        check_call({"_target_": "dp.weights.checkpoints.load", **start, "net": None}, "training.start")
        net = checkpoints.load(net, **start)
    adapter = _make(config, {**node, "_partial_": True})(net=net)
    return _placed(adapter, config, device)


def others_on(config: dict, device: str) -> dict[str, Any]:
    """The frozen networks of a recipe by name, in evaluation mode; a purifier may also be a function."""
    made = {name: _make(config, node) for name, node in config["others"].items()}
    for other in made.values():
        if isinstance(other, nn.Module):
            _placed(other, config, device).eval().requires_grad_(False)
    return made


def _placed(network: Any, config: dict, device: str) -> Any:
    """The adapter on the device, and on a GPU in the recipe's memory format."""
    precision = config["training"]["precision"]
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"need training.precision float32 or bfloat16, got {precision}")
    if not device.startswith("cuda"):
        return network
    return network.to(device, memory_format=torch.channels_last)


def check_recipe(config: dict) -> None:
    """Check the recipe against the signatures that it calls, and its `others` against the task. Raises ValueError."""
    recipe, modules = config["training"], config["plugins"]["modules"]
    for key in ("threads", "test_images"):
        value = recipe.get(key)
        if (value, key) != (None, "threads") and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"need training.{key} as a whole number >= 1, got {value!r}")
    check_call({k: v for k, v in recipe.items() if k not in OWN}, "training", modules)
    given = {**recipe["task"], **dict.fromkeys(config["others"])}
    check_call({"data": recipe["data"], "task": given}, "training", modules)


def training_of(config: dict, adapter: Adapter, device: str) -> Training:
    """The training of a network by the recipe, at its first step."""
    recipe = config["training"]
    task = _make(config, recipe["task"])(adapter, _make(config, recipe["data"]), **others_on(config, device))
    return looped(config, task, device, training_hash(config))


def looped(config: dict, task: Any, device: str, code: str = "") -> Training:
    """The training of a task by the recipe's loop, in the recipe's precision. `code`: see `Training`."""
    recipe = config["training"]
    narrow = torch.bfloat16 if recipe["precision"] == "bfloat16" and device.startswith("cuda") else None
    return _make(config, {k: v for k, v in recipe.items() if k not in OWN})(task, autocast=narrow, code=code)


def tested(config: dict) -> Subset:
    """The recipe's test images. Raises ValueError for a number that the dataset does not have."""
    return _make(config, {**config["dataset"]["loader"], "images": config["training"]["test_images"]})


def judged(config: dict, adapter: Adapter, training: Training, test: Subset, folder: Path) -> dict[str, float]:
    """The figures of the task's judge, on test images and with the result of the training."""
    training.task.net.load_state_dict(training.result.state_dict())
    adapter.eval().requires_grad_(False)
    return training.task.judge(test, folder, config["training"]["seed"])


def _make(config: dict, node: Any) -> Any:
    return compose.make(node, modules=config["plugins"]["modules"])
