"""Classifiers of RobustBench and timm: their architectures, with weights that are read as tensors only."""

import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.files.cache import Asset, locate, verify
from dp.spelling import near_matches
from dp.weights.checkpoints import fit, read

THREATS = {"linf": "Linf", "l2": "L2", "corruptions": "corruptions"}
NORMALIZERS = ("mu", "sigma", "mean", "std")  # buffers that many older files lack
LAST = ("Andriushchenko2020Understanding", "Kireev2021Effectiveness")  # files with a best and a last model
ENTRIES = ("state_dict", "model_state_dict", "model")  # of training checkpoints
UNUSED = re.compile(r"^model_preact_hl1\.|\.scores$")  # in some files, but not in RobustBench's classes


def robustbench(model: str, dataset: str = "cifar10", threat: str = "Linf") -> nn.Module:
    """RobustBench's network of this id with its weights. It takes images in [0,1] and normalizes inside.

    `dataset`: cifar10, cifar100 or imagenet. `threat`: Linf, L2 or corruptions. The file is
    `robustbench/<dataset>/<threat>/<model>.pt` in the cache folder. Raises ValueError for an unknown id, for one with
    several weights files, and for a file that does not fit exactly.
    """
    asset = robustbench_asset(model, dataset, threat)
    path = locate(asset)
    verify(path, asset)
    state, net = (
        _weights(path, ("last", *ENTRIES) if model.startswith(LAST) else ENTRIES),
        untrained(model, dataset, threat),
    )
    return fit(net, _named(state, net), path.name)


def untrained(model: str, dataset: str = "cifar10", threat: str = "Linf") -> nn.Module:
    """RobustBench's network of this id with random weights. It needs no file."""
    entry = _entry(model, dataset, threat)
    return entry["model"]() if entry is not None else _of_timm(model, dataset, threat)


def robustbench_asset(model: str, dataset: str = "cifar10", threat: str = "Linf") -> Asset:
    """The file with the weights of this id, and the address where it is published."""
    entry, threat = _entry(model, dataset, threat), _threat(threat)
    file = f"robustbench/{dataset}/{threat}/{model}.pt"
    if entry is None:
        import timm as library  # imported here because it takes seconds

        settings: Any = library.get_pretrained_cfg(_timm_name(model, dataset, threat))
        return Asset(file, settings.url)
    return Asset(file, f"https://drive.google.com/uc?id={entry['gdrive_id']}")


def timm(model: str, taps: Sequence[str] = ()) -> Classifier:
    """timm's model of this name (`deit_small_patch16_224`, `wide_resnet50_2.tv_in1k`, ...) as a classifier.

    It has its pretrained weights, which must fit exactly, and the mean, std and size that they were trained with.
    `taps`: see `Classifier`. Raises ValueError for a name without published weights.
    """
    asset = timm_asset(model)
    path = locate(asset)
    verify(path, asset)
    classifier = untrained_timm(model, taps)
    fit(classifier.net, _todays_names(_weights(path, ENTRIES), classifier.net), path.name)
    return classifier


def untrained_timm(model: str, taps: Sequence[str] = ()) -> Classifier:
    """timm's model of this name as a classifier, with random weights. It needs no file."""
    import timm as library  # imported here because it takes seconds

    settings = _settings(model)
    net = library.create_model(model, pretrained=False, num_classes=settings.num_classes)
    return Classifier(net, taps, settings.mean, settings.std, settings.input_size[-1])


def timm_asset(model: str, **_: object) -> Asset:
    """The file that timm publishes for this model, in safetensors or an older format. Other keys are ignored."""
    settings = _settings(model)
    name = model if "." in model else f"{model}.{settings.tag}" if settings.tag else model
    if not settings.hf_hub_id:
        return Asset(f"timm/{name}.pth", settings.url)
    return Asset(
        f"timm/{name}.safetensors", f"https://huggingface.co/{settings.hf_hub_id}/resolve/main/model.safetensors"
    )


def _settings(model: str) -> Any:
    """timm's record of a model's weights. Raises ValueError unless they are a classifier in one file."""
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
    """RobustBench's record of the id, or None if its architecture is registered with timm. Raises ValueError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses deprecated names of other libraries
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
    """Offer `pyautoattack`, its name in the package index, as `autoattack`, which RobustBench imports."""
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
    """The named tensors of a file, at its top level or, recursively, under the first of these entries that exists."""
    content = state = read(path)
    while isinstance(state, Mapping) and not all(isinstance(k, str) and isinstance(state[k], Tensor) for k in state):
        state = next((state[entry] for entry in entries if entry in state), None)
    if not isinstance(state, Mapping):
        got = ", ".join(map(str, content))[:200] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"need named tensors, or {' or '.join(entries)} with them, in {path}, got {got}")
    return dict(state)


def _named(state: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The file's tensors under the network's names.

    Prefixes of wrappers are removed and the prefix of the normalizing layer is added. Where the file has no mean and
    std, the network's own stay.
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
    missing = {k: v for k, v in own.items() if k.rpartition(".")[2] in NORMALIZERS and k not in state}
    return {**state, **missing}


def _todays_names(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Tensors of older versions of timm under today's names, by the function that timm has beside an architecture.

    Other tensors are returned unchanged, so that `fit` reports what differs.
    """
    convert = vars(sys.modules[type(net).__module__]).get("checkpoint_filter_fn")
    if convert is None or set(state) == set(net.state_dict()):
        return state
    try:
        return convert(dict(state), net)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return state
