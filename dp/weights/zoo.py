"""Classifiers of model zoos: RobustBench's and timm's architectures, their weights read by our tensors-only path."""

import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.files.cache import Asset, locate, verify
from dp.spelling import near_matches
from dp.weights.checkpoints import fit, read

THREATS = {"linf": "Linf", "l2": "L2", "corruptions": "corruptions"}
NORMALISERS = ("mu", "sigma", "mean", "std")  # buffers that many files lack, because the code came later
LAST = ("Andriushchenko2020Understanding", "Kireev2021Effectiveness")  # files with a best and a last model
ENTRIES = ("state_dict", "model_state_dict", "model")  # of training checkpoints
UNUSED = re.compile(r"^model_preact_hl1\.|\.scores$")  # in some files, of which RobustBench's classes know nothing


def robustbench(model: str, dataset: str = "cifar10", threat: str = "Linf") -> nn.Module:
    """RobustBench's architecture of this id with its weights, strictly; it eats [0,1] and normalises inside.

    `dataset`: cifar10, cifar100 or imagenet; `threat`: Linf, L2 or corruptions. The file is
    `robustbench/<dataset>/<threat>/<model>.pt` in the cache folder. Raises ValueError for an unknown id, for one that
    is more than one file of weights, and for a file that does not fit.
    """
    asset = robustbench_asset(model, dataset, threat)
    path = locate(asset)
    verify(path, asset)
    state = _weights(path, ("last", *ENTRIES) if model.startswith(LAST) else ENTRIES)
    entry = _entry(model, dataset, threat)
    net = entry["model"]() if entry is not None else _of_timm(model, dataset, threat)
    return fit(net, _named(state, net), path.name)


def robustbench_asset(model: str, dataset: str = "cifar10", threat: str = "Linf") -> Asset:
    """Where the weights of this id lie and where they are published."""
    entry, threat = _entry(model, dataset, threat), _threat(threat)
    file = f"robustbench/{dataset}/{threat}/{model}.pt"
    if entry is None:
        import timm as library  # here: it costs seconds

        settings: Any = library.get_pretrained_cfg(_timm_name(model, dataset, threat))
        return Asset(file, settings.url)
    return Asset(file, f"https://drive.google.com/uc?id={entry['gdrive_id']}")


def timm(model: str, taps: Sequence[str] = (), dtype: torch.dtype = torch.float32) -> Classifier:
    """timm's model of this name (`deit_small_patch16_224`, `wide_resnet50_2.tv_in1k`, ...) with its pretrained weights,
    strictly, and with the mean, std and size that they were trained with.
    """
    import timm as library  # here: it costs seconds

    asset, settings = timm_asset(model), _settings(model)
    path = locate(asset)
    verify(path, asset)
    net = library.create_model(model, pretrained=False, num_classes=settings.num_classes)
    net = fit(net, _todays_names(_weights(path, ENTRIES), net), path.name)
    return Classifier(net, taps, settings.mean, settings.std, settings.input_size[-1], dtype)


def timm_asset(model: str, **_: object) -> Asset:
    """The file that timm publishes for this model, safetensors or older; what else a yaml says does not matter."""
    settings = _settings(model)
    name = model if "." in model else f"{model}.{settings.tag}" if settings.tag else model
    if not settings.hf_hub_id:
        return Asset(f"timm/{name}.pth", settings.url)
    return Asset(
        f"timm/{name}.safetensors", f"https://huggingface.co/{settings.hf_hub_id}/resolve/main/model.safetensors"
    )


def _settings(model: str) -> Any:
    """timm's record of a model's weights. Raises ValueError where there are none with classes in a file of its own."""
    import timm as library

    known = library.list_models(pretrained=True)
    if model in known or (library.is_model(model) and "." not in model):
        settings: Any = library.get_pretrained_cfg(model)
        if settings and settings.num_classes and not settings.hf_hub_filename and (settings.hf_hub_id or settings.url):
            return settings
    near = near_matches(model, [name for name in known if name != model])
    raise ValueError(f"need a timm classifier with published weights, got {model}{near}")


def _threat(threat: str) -> str:
    if threat.lower() not in THREATS:
        raise ValueError(f"need threat Linf, L2 or corruptions, got threat={threat!r}")
    return THREATS[threat.lower()]


def _entry(model: str, dataset: str, threat: str) -> dict | None:
    """RobustBench's record of the id; None where the architecture is registered with timm. Raises ValueError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it leans on names that other libraries have given up
        _alias()
        zoo = importlib.import_module("robustbench.model_zoo")
    enums = importlib.import_module("robustbench.model_zoo.enums")
    names = [d.value for d in enums.BenchmarkDataset]
    if dataset not in names:
        raise ValueError(f"need dataset {', '.join(names)} for RobustBench, got dataset={dataset}")
    known = zoo.model_dicts[enums.BenchmarkDataset(dataset)].get(enums.ThreatModel(_threat(threat))) or {}
    if model not in known:
        raise ValueError(
            f"unknown RobustBench model {model} for {dataset}, {_threat(threat)}{near_matches(model, known)}"
        )
    entry = known[model]
    if isinstance(entry.get("gdrive_id"), str) and model != "Standard_R50":
        return entry
    if not isinstance(entry.get("gdrive_id"), list) and model != "Standard_R50":
        return None
    why = "torchvision's, choose classifier=resnet50" if model == "Standard_R50" else "an ensemble of several files"
    raise ValueError(f"need a RobustBench model of one file, got {model}, which is {why}")


def _alias() -> None:
    """RobustBench imports `autoattack`, which the package index only has as `pyautoattack`."""
    if importlib.util.find_spec("autoattack") is None and "autoattack" not in sys.modules:
        sys.modules["autoattack"] = importlib.import_module("pyautoattack")
        sys.modules["autoattack.state"] = importlib.import_module("pyautoattack.state")


def _timm_name(model: str, dataset: str, threat: str) -> str:
    return f"{model.lower().replace('-', '_')}_{dataset}_{threat.lower()}"


def _of_timm(model: str, dataset: str, threat: str) -> nn.Module:
    import timm as library

    classes = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}[dataset]
    return library.create_model(_timm_name(model, dataset, _threat(threat)), num_classes=classes, pretrained=False)


def _weights(path: Path, entries: Sequence[str]) -> dict[str, Tensor]:
    """The named tensors of a file, at its top or under the first of these entries that it has, and so on below."""
    content = found = read(path)
    while isinstance(found, Mapping) and not all(isinstance(k, str) and isinstance(found[k], Tensor) for k in found):
        found = next((found[entry] for entry in entries if entry in found), None)
    if not isinstance(found, Mapping):
        got = ", ".join(map(str, content))[:200] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"need named tensors, or {' or '.join(entries)} with them, in {path}, got {got}")
    return dict(found)


def _named(state: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The file's tensors under the net's names: wrappers' prefixes off, the normaliser's prefix on, and the net's own
    mean and std where the file has none.
    """
    own = net.state_dict()
    bare = {k.removeprefix("module.").removeprefix("model."): v for k, v in state.items()}
    if len(bare) < len(state):
        raise ValueError("need every tensor under one name, got a RobustBench file with both module.X and X")
    state = bare
    state = {k: v for k, v in state.items() if k in own or not UNUSED.search(k)}
    inner = net._modules.get("model")
    if inner is not None and any(k.startswith("normalize.") for k in own):
        constants = {k: v for k, v in state.items() if k.startswith("normalize.")}
        bare = {k: v for k, v in state.items() if k not in constants}
        state = constants | {f"model.{k}": v for k, v in _todays_names(bare, inner).items()}
    missing = {k: v for k, v in own.items() if k.rpartition(".")[2] in NORMALISERS and k not in state}
    return {**state, **missing}


def _todays_names(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Files of older versions of timm, brought to this one's names by the function that it keeps for that beside each
    architecture; any other file as it is, for `fit` to complain about.
    """
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if convert is None or set(state) == set(net.state_dict()):
        return state
    try:
        return convert(dict(state), net)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return state
