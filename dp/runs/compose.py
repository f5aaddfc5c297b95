"""From a command line to plain data: Hydra's composition, values that depend on the dataset, and objects of nodes."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dp.runs.by_dataset import CONF, DATASET_KEYS, unvalued  # also the resolvers
from dp.runs.errors import unknown_option
from dp.runs.targets import PACKAGES, RESERVED, is_below, target_of, typed
from dp.runs.words import GROUPS, UNCHOSEN, check_folder, check_overrides, check_words, words_of

VERSION_BASE = "1.3"  # of Hydra's behavior
FALLBACKS = {"classifier": "local", "denoiser": "none"}  # for a dataset without an option of its name


class Setup(NamedTuple):
    """The configuration of a command, as plain data.

    `config`: the composed configuration. It has the chosen options under `choices`, and the folders and modules of
    plug-ins under `plugins`. `defaults`: the configuration of the same options with no key changed. `words`: the
    words of the command, by the dotted key or group that they set. `sets_gradient`: see the function of this name.
    `notes`: lines for people about options that stand in for missing ones.
    """

    config: dict
    defaults: dict
    words: dict[str, str]
    sets_gradient: bool = False
    notes: tuple[str, ...] = ()


def resolved(cfg: DictConfig, choices: Mapping[str, str]) -> dict:
    """The configuration as plain data, with the names of the chosen options under `choices`.

    Raises ValueError if `results` or `key_ignores` has the wrong type, because a run needs both for its folder, and for
    keys that have no value on this dataset.
    """
    absent = [f"dataset.{key}" for key in DATASET_KEYS if key not in (cfg.get("dataset") or {})]
    if absent:
        raise ValueError(f"need {', '.join(absent)} in the yaml of dataset={choices['dataset']}, got a dataset without")
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException:
        without = ", ".join(unvalued(cfg))
        if not without:
            raise
        raise ValueError(f"need values for dataset {cfg.dataset.name}, which no table names: {without}") from None
    assert isinstance(plain, dict)
    if own := {"choices", "plugins"} & {*plain}:
        raise ValueError(f"unknown key {min(map(str, own))}: dp itself writes it")
    results, ignored = plain.get("results"), plain.get("key_ignores")
    if not isinstance(results, str) or not results.strip():
        raise ValueError(f"need results as a folder, such as results/runs, got results={results}")
    if not isinstance(ignored, list) or not all(isinstance(key, str) for key in ignored):
        raise ValueError(f"need key_ignores as a list of keys, such as [results], got key_ignores={ignored}")
    return {**plain, "choices": {group: choices[group] for group in GROUPS if group not in UNCHOSEN}}  # pyright: ignore[reportReturnType]


def with_fallbacks(config: dict, folders: Sequence[str]) -> tuple[dict, tuple[str, ...]]:
    """The configuration with `FALLBACKS` for what a dataset does not have, and a line about them if there are any.

    Raises ValueError for an option that does not exist.
    """
    dataset, absent = config["choices"]["dataset"], [group for group in FALLBACKS if group not in config]
    for group in absent:
        option = config["choices"][group]
        if option != dataset:
            found = {path.stem for folder in (CONF, *folders) for path in (Path(folder) / group).glob("*.yaml")}
            raise ValueError(unknown_option(group, option, sorted(found)))
    if not absent:
        return config, ()
    cfg = _composed([f"{group}={option}" for group, option in FALLBACKS.items()], folders)
    config = config | {group: OmegaConf.to_container(cfg[group], resolve=True) for group in absent}
    config["choices"] = config["choices"] | {group: FALLBACKS[group] for group in absent}
    stand_ins = " and ".join(f"{group}={FALLBACKS[group]}" for group in absent)
    own = "classifier=local classifier.net.file=FILE classifier.net.net._target_=NETWORK"
    ways = {"classifier": f"classifier=NAME or {own}", "denoiser": "denoiser=NAME"}
    setting = ", and ".join(ways[group] for group in absent)
    return config, (
        f"dataset {dataset} has no {' and no '.join(absent)} of its name, so it has {stand_ins}: set {setting}",
    )


def composed(*overrides: str, config_dirs: Sequence[str | Path] = ()) -> dict:
    """The plain configuration of `python run.py overrides...`. `config_dirs`: folders of plug-ins."""
    return _config_of(*_with_folders(overrides, config_dirs))[0]


def _with_folders(overrides: Sequence[str], config_dirs: Sequence[str | Path]) -> tuple[DictConfig, list[str]]:
    folders = [str(Path(folder).absolute()) for folder in config_dirs]
    check_words(overrides, folders)
    return _composed(overrides, folders), folders


def _config_of(cfg: DictConfig, folders: list[str]) -> tuple[dict, tuple[str, ...]]:
    """The plain configuration of Hydra's own, which has the node `hydra`, and of these folders of plug-ins; notes."""
    return _complete(resolved(_without_hydra(cfg), cfg.hydra.runtime.choices), folders)


def _complete(config: dict, folders: list[str]) -> tuple[dict, tuple[str, ...]]:
    config, notes = with_fallbacks(config, folders)
    config = with_plugins(config, folders)
    return typed(config, config["plugins"]["modules"]), notes


def _composed(overrides: Sequence[str], folders: Sequence[str]) -> DictConfig:
    """Hydra's own composition, with its node `hydra`. It also works inside a run, which Hydra has composed already."""
    running, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    search = [f"hydra.searchpath=[{','.join('file://' + folder for folder in folders)}]"] if folders else []
    try:
        with initialize_config_dir(str(CONF), version_base=VERSION_BASE):
            return compose("config", overrides=[*overrides, *search], return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = running


def _without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def setup(*overrides: str, config_dirs: Sequence[str | Path] = ()) -> Setup:
    """The `Setup` of a command with these overrides. `config_dirs`: folders of plug-ins."""
    cfg, folders = _with_folders(overrides, config_dirs)
    config, notes = _config_of(cfg, folders)
    return Setup(config, defaults_of(config), words_of(overrides), sets_gradient(cfg), notes)


def setup_of(cfg: DictConfig) -> Setup:
    """The `Setup` of the configuration that Hydra's own entry has composed."""
    hydra = HydraConfig.get()
    check_overrides(hydra.overrides.task)
    config, notes = _complete(resolved(cfg, hydra.runtime.choices), plugin_folders(hydra))
    return Setup(config, defaults_of(config), words_of(hydra.overrides.task), sets_gradient(cfg), notes)


def sets_gradient(cfg: DictConfig) -> bool:
    """True if the command, a preset or the protocol names the gradient mode, so that no resolver computes it."""
    return not all(OmegaConf.is_interpolation(cfg[group], "grad") for group in ("protocol", "threat_model"))


def plugin_folders(hydra: Any) -> list[str]:
    """The folders that --config-dir names. `hydra`: the node of this name in a composed configuration."""
    return [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]


def defaults_of(config: dict) -> dict:
    """The configuration of the same options and plug-ins, without the keys that a command or a preset changes.

    A key is left out if it has no value because no table names the dataset.
    """
    cfg = _composed([f"{group}={option}" for group, option in config["choices"].items()], config["plugins"]["folders"])
    return typed(_valued(_without_hydra(cfg)), config["plugins"]["modules"])


def _valued(node: DictConfig) -> dict:
    """A node as plain data. Keys whose value cannot be resolved are left out."""
    plain = {}
    for key in node:
        try:
            value = node[key]
        except OmegaConfBaseException:
            continue
        if isinstance(value, DictConfig):
            value = _valued(value)
        plain[key] = OmegaConf.to_container(value, resolve=True) if isinstance(value, ListConfig) else value
    return plain


def with_plugins(config: dict, folders: Sequence[str]) -> dict:
    """The configuration with the folders of plug-ins and the top modules that their yamls name, under `plugins`.

    Modules below `PACKAGES` are left out. If there are plug-ins, the working folder becomes importable. Raises
    ValueError if a folder does not exist.
    """
    targets = {target for folder in folders for target in _targets(Path(folder))}
    modules = sorted({target.partition(".")[0] for target in targets if not is_below(target, PACKAGES)})
    if folders and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return {**config, "plugins": {"folders": list(folders), "modules": modules}}


def _targets(folder: Path) -> Iterator[str]:
    """Every `_target_` in the yamls of a folder. Raises ValueError if there is no such folder."""
    check_folder(folder)
    for path in sorted(folder.rglob("*.yaml")):
        for node in nodes(yaml.safe_load(path.read_text())):
            if isinstance(node.get("_target_"), str):
                yield node["_target_"]


def nodes(value: Any) -> Iterator[dict]:
    """Every mapping in plain data. An outer mapping comes before those inside it."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(child)


def make(node: Any, *args: Any, modules: Sequence[str] = (), **more: Any) -> Any:
    """The object that a plain node describes by its `_target_`. Reserved keys are removed first.

    `modules`: top modules of plug-ins. Raises ValueError for a target that `target_of` refuses.
    """
    plain = arguments(node)
    for each in nodes(plain):
        if "_target_" in each:
            target_of(each["_target_"], modules)
    return instantiate(plain, *args, _convert_="all", **more)


def arguments(node: Any) -> Any:
    """The node without its reserved keys and those of all nodes inside it."""
    if isinstance(node, list):
        return [arguments(child) for child in node]
    if not isinstance(node, dict):
        return node
    return {k: arguments(v) for k, v in node.items() if k not in RESERVED}
