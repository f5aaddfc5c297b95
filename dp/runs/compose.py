"""From a command line to plain data: Hydra's composition, the values that hang on the dataset, and a run's key."""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).parents[2]
CONF = (
    ROOT / "dp" / "conf" if (ROOT / "dp" / "conf").is_dir() else ROOT / "conf"
)  # in an installed wheel, in a checkout
VERSION_BASE = "1.3"  # of Hydra's behavior
GROUPS = ("dataset", "classifier", "denoiser", "purifier", "attack", "threat_model", "protocol", "tracking")
PACKAGES = ("dp", "torch", "torchvision", "timm")  # that a `_target_` may name; plug-ins add theirs

# Keys of a node that are no arguments of its `_target_`. They never reach a function.
RESERVED = ("per_dataset", "gradients", "published", "version")
# Keys that cannot change a row: tables whose values stand elsewhere, labels, and where a file comes from.
NOT_HASHED = ("per_dataset", "published", "url", "megabytes", "files", "full_size", "scaled_from")
# An option that was added later, by its path, with the value that changes nothing: hashed only where it differs.
NEUTRAL: dict[str, Any] = {"protocol.attack_variants": []}


class Setup(NamedTuple):
    """What a command asks for, as plain data.

    `config`: the composed configuration, with the chosen options under `choices` and the folders and modules of
    plug-ins under `plugins`; `defaults`: the same options without any key that the command changes; `overrides`: the
    words of the command.
    """

    config: dict
    defaults: dict
    overrides: tuple[str, ...]


def per_dataset(key: str, *, _parent_: Any, _root_: Any) -> Any:
    """${per_dataset:key}: the value of `key` for the chosen dataset, from the nearest `per_dataset` table upwards.

    A table maps dataset names, or `default`, to values by key. Raises ValueError where no table has a value.
    """
    name, tables, node = _root_.dataset.name, [], _parent_
    while node is not None:
        table = node.get("per_dataset") if isinstance(node, DictConfig) else None
        if table is not None:
            tables.append(table)
            for column in (name, "default"):
                if column in table and key in table[column]:
                    return table[column][key]
            if any(key in values for values in table.values()):
                break
        node = node._get_parent()
    known = [column for table in tables[-1:] for column, values in table.items() if key in values]
    raise ValueError(
        f"no value of {key} for dataset {name}, only for {', '.join(known) or 'none'}: set the key on the command line"
    )


OmegaConf.register_new_resolver("per_dataset", per_dataset, replace=True)


def resolved(cfg: DictConfig, choices: Mapping[str, str]) -> dict:
    """The configuration as plain data, with the names of the chosen options under `choices`."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {**plain, "choices": {group: choices[group] for group in GROUPS if group != "tracking"}}  # pyright: ignore[reportReturnType]


def composed(*overrides: str, config_dirs: Sequence[str | Path] = ()) -> dict:
    """The plain configuration that `python run.py overrides...` would run. `config_dirs`: folders of plug-ins."""
    running = GlobalHydra.instance().hydra  # in the middle of a run there is one
    GlobalHydra.instance().hydra = None
    folders = [str(Path(folder).absolute()) for folder in config_dirs]
    search = [f"hydra.searchpath=[{','.join('file://' + folder for folder in folders)}]"] if folders else []
    try:
        with initialize_config_dir(str(CONF), version_base=VERSION_BASE):
            cfg = compose("config", overrides=[*overrides, *search], return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = running
    config = resolved(OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"]), cfg.hydra.runtime.choices)
    return with_plugins(config, folders)


def setup(*overrides: str, config_dirs: Sequence[str | Path] = ()) -> Setup:
    """What a command with these overrides asks for."""
    config = composed(*overrides, config_dirs=config_dirs)
    return Setup(config, defaults_of(config), tuple(overrides))


def setup_of(cfg: DictConfig) -> Setup:
    """The same for the configuration that Hydra's own entry has composed."""
    hydra = HydraConfig.get()
    check_overrides(hydra.overrides.task)
    config = with_plugins(resolved(cfg, hydra.runtime.choices), plugin_folders(hydra))
    return Setup(config, defaults_of(config), tuple(hydra.overrides.task))


def plugin_folders(hydra: Any) -> list[str]:
    """The folders of plug-ins in Hydra's own node of a composed configuration: --config-dir."""
    return [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]


def defaults_of(config: dict) -> dict:
    """The configuration of the same options and search path, without any key that a command or a preset changes."""
    chosen = [f"{group}={option}" for group, option in config["choices"].items()]
    return composed(*chosen, config_dirs=config["plugins"]["folders"])


def with_plugins(config: dict, folders: Sequence[str]) -> dict:
    """The configuration with the plug-ins' folders and the top modules that their yamls name. The working folder
    becomes importable where there are any.
    """
    modules = sorted({target.partition(".")[0] for folder in folders for target in _targets(Path(folder))})
    if folders and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return {**config, "plugins": {"folders": list(folders), "modules": modules}}


def _targets(folder: Path) -> Iterator[str]:
    """Every `_target_` in the yamls of a folder."""
    if not folder.is_dir():
        raise ValueError(f"need a folder of yamls for --config-dir, got {folder}")
    for path in sorted(folder.rglob("*.yaml")):
        for node in nodes(yaml.safe_load(path.read_text())):
            if isinstance(node.get("_target_"), str):
                yield node["_target_"]


def nodes(value: Any) -> Iterator[dict]:
    """Every mapping in plain data, outermost first."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(child)


def make(node: Any, *args: Any, modules: Sequence[str] = (), **more: Any) -> Any:
    """The object that a plain node describes by its `_target_`, its reserved keys taken off.

    `modules`: top modules of plug-ins. Raises ValueError for a target outside `PACKAGES` and them.
    """
    for each in nodes(node):
        top = str(each.get("_target_", "dp")).partition(".")[0]
        if top not in (*PACKAGES, *modules):
            allowed = ", ".join((*PACKAGES, *modules))
            raise ValueError(
                f"need _target_ below {allowed}, got {each['_target_']}: name other modules in a yaml of --config-dir"
            )
    return instantiate(arguments(node), *args, _convert_="all", **more)


def arguments(node: Any) -> Any:
    """The node without the reserved keys of itself and of every node in it that has a `_target_`."""
    if isinstance(node, list):
        return [arguments(child) for child in node]
    if not isinstance(node, dict):
        return node
    return {k: arguments(v) for k, v in node.items() if not is_reserved(k, v)}


def is_reserved(key: str, value: Any) -> bool:
    """Whether this key of a node is no argument. `version` is reserved where it is a number: AutoAttack takes a text."""
    return key in RESERVED and (key != "version" or isinstance(value, int))


def check_overrides(given: Sequence[str]) -> None:
    """Raises ValueError for key={}, which Hydra merges into what is there: it changes nothing."""
    idle = [o for o in given if re.fullmatch(r"[^+~=]+=\s*\{\s*\}", o)]
    if idle:
        key = idle[0].partition("=")[0]
        raise ValueError(f"need something to set, got {idle[0]}, which changes nothing: ~{key}.NAME takes one out")


def value_of(override: str) -> Any:
    """The value of `key=value`, by the grammar of the command line. Raises Hydra's error for what is no override."""
    return OverridesParser.create().parse_override(override).value()


def keys_below(parent: str, overrides: Sequence[str]) -> list[str]:
    """The keys of a node in a command's configuration, read with its group options alone: for near matches."""
    node: Any = composed(*[a for a in overrides if a.partition("=")[0] in GROUPS and "," not in a])
    for name in parent.split(".") if parent else ():
        node = node.get(name, {}) if isinstance(node, dict) else {}
    return [str(key) for key in node] if isinstance(node, dict) else []


def run_key(config: dict) -> str:
    """Same configuration, same key: readable names and a hash of all that can change a row.

    Of a `_target_` the last two parts count. Left out are `config["key_ignores"]`, `NOT_HASHED`, gradient variants
    that the run does not use, a version of 1, and options at their `NEUTRAL` value.
    """
    kept = {k: v for k, v in config.items() if k not in (*config["key_ignores"], "choices", "plugins")}
    used = gradients_used(config)
    digest = hashlib.sha256(json.dumps(_identity(kept, used), sort_keys=True).encode()).hexdigest()[:10]
    c = config["choices"]
    return f"{c['dataset']}-{c['purifier']}-{c['attack']}-{c['threat_model']}-{digest}".replace("/", "_")


def gradients_used(config: dict) -> set[str]:
    """The names of all gradient modes that the threat model and the attack ask for."""
    asked = {node["grad"] for node in nodes(config.get("attack")) if isinstance(node.get("grad"), str)}
    return asked | {config["threat_model"]["grad"]}


def _identity(value: Any, used: set[str], path: str = "") -> Any:
    if isinstance(value, list):
        return [_identity(child, used, path) for child in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, child in value.items():
        where = f"{path}.{key}".lstrip(".")
        neutral = (where in NEUTRAL and child == NEUTRAL[where]) or (key == "version" and child == 1)
        if key in NOT_HASHED or neutral:
            continue
        if key == "_target_":
            found[key] = ".".join(child.split(".")[-2:])
        elif key == "gradients" and isinstance(child, dict):
            variants = {name: _identity(variant, used) for name, variant in child.items() if name in used}
            found |= {key: variants} if variants else {}
        else:
            found[key] = _identity(child, used, where)
    return found
