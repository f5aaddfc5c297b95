"""Configurations composed as a run composes them, with budgets of seconds, and the options that there are."""

import copy
import functools
from pathlib import Path

import torch
from torch import Tensor

from dp.runs import by_dataset, compose
from dp.runs.compose import Setup

CONF = by_dataset.CONF
ROOT = by_dataset.ROOT
CONFIG_DIRS: list[str] = []  # of plug-ins: pytest --config-dir mine
TINY = [  # seconds instead of minutes
    "protocol.images=4",
    "protocol.seeds=[5,6]",
    "protocol.votes=3",
    "attack.iterations=2",
    "attack.eot=2",
    "dataset.lanes=4",
    "dataset.draws_per_call=2",
]
TOLD = ("hetero_box", "inside_box", "outside_box")  # options that are told boxes, which only canvas has
SMALL = {"iterations": 2, "steps": 2, "eot": 2, "queries": 5, "directions": 4, "targets": 2, "confirm": 3}


def composed(*overrides: str) -> dict:
    """The plain configuration that `python run.py overrides...` would run: a copy of one's own."""
    return copy.deepcopy(_composed(overrides, tuple(CONFIG_DIRS)))


def setup(*overrides: str) -> Setup:
    """The same with what it is compared with: the same options without any key that the overrides change."""
    return copy.deepcopy(_setup(overrides, tuple(CONFIG_DIRS)))


@functools.cache
def _composed(overrides: tuple[str, ...], folders: tuple[str, ...]) -> dict:
    """A composition takes a tenth of a second, and many tests ask for the same one."""
    return compose.composed(*overrides, config_dirs=folders)


@functools.cache
def _setup(overrides: tuple[str, ...], folders: tuple[str, ...]) -> Setup:
    return compose.setup(*overrides, config_dirs=folders)


def options(group: str) -> list[str]:
    """The options of a group, those of plug-ins too."""
    folders = [Path(folder) / group for folder in (CONF, *CONFIG_DIRS)]
    return sorted({p.relative_to(f).with_suffix("").as_posix() for f in folders for p in f.rglob("*.yaml")})


def plug_ins(group: str) -> list[str]:
    """The options of a group that lie outside the tree."""
    return [name for name in options(group) if not (CONF / group / f"{name}.yaml").exists()]


def home(name: str) -> list[str]:
    """Overrides that choose the dataset on which an option runs, if it is not digits."""
    return ["dataset=canvas"] if name in TOLD else []


def loadable(group: str) -> list[str]:
    """The options of a group that need no download: those of the embedded benchmarks, and those of plug-ins."""
    return ["digits", "canvas", *plug_ins(group)]


def on_its_dataset(group: str, name: str) -> list[str]:
    """Overrides that choose an option with the dataset of its name, if there is one; no purifier and no denoiser."""
    dataset = [f"dataset={name}"] if name in loadable("dataset") else []
    return list(dict.fromkeys([*dataset, "purifier=none", f"{group}={name}", "protocol.images=4"]))


def images_of(name: str) -> tuple[Tensor, Tensor | None]:
    """Images (4,C,H,W) in [0,1], labels (4,). Where no dataset has the name: uniform (4,3,32,32), no labels."""
    if name not in loadable("dataset"):
        return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), None
    config = composed(*on_its_dataset("dataset", name))
    subset = compose.make(config["dataset"]["loader"], modules=config["plugins"]["modules"])
    return subset.x, subset.y


def small_budget(attack: str) -> list[str]:
    """Overrides that make every part of an attack small."""

    def of(node: dict, path: str) -> list[str]:
        small = [f"{path}.{k}={v}" for k, v in SMALL.items() if k in node and isinstance(node[k], int | None)]
        for key, value in node.items():
            small += of(value, f"{path}.{key}") if isinstance(value, dict) and key != "per_dataset" else []
        return small

    return of(composed(f"attack={attack}")["attack"], "attack")


def finished(config: dict, folder: Path) -> dict | None:
    """The summary of the run of a configuration in this folder, done now."""
    from dp.runs.pipeline import judged

    return judged(Setup(config, compose.defaults_of(config), {}), folder)
