"""A sanitizing from its command to its configuration: words, checks, recipes, and the folder of its files."""

import functools
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.output.console import console
from dp.runs import compose, job_files
from dp.runs.errors import USER_ERRORS, unknown_option
from dp.runs.help import options
from dp.runs.keys import digest_of
from dp.runs.sources import sources_hash
from dp.runs.targets import target_of
from dp.runs.trained import check_whole
from dp.runs.validate import check_call, check_finite, check_keys, check_kinds, check_setup
from dp.runs.words import GROUPS, words_of
from dp.sanitizing.elixir import DataElixir, Recipe
from dp.sanitizing.poison import Poison
from dp.spelling import near_matches

DEFAULTS = {"sanitizer": "dataelixir", "poison": "patch"}  # the groups of a sanitizing, with their default options
FOLDER, ARCHIVE = Path("results/sanitized"), Path("results/measured/sanitized")
NETWORKS = ("dataset", "classifier", "denoiser")
TAKES = (*NETWORKS, *DEFAULTS, "results", "device", "overwrite")  # what a command may set
# A configuration has these groups too, and nothing reads them here. The values are for any dataset.
REST = ("purifier=diffpure", "purifier.t=0.2", "purifier.steps=1", "attack=none")
FINER = 0.2  # learning rate of the fine-tuning by default, as a share of the recipe's
FORMAT = 1  # of summary.json
REPORT, PICTURE, CHANGES = "report.md", "rounds.png", "changes"  # files of a finished sanitizing
LABELS, STATES = "labels-*.safetensors", "states-*.safetensors"  # the chunks of the two passes


@dataclass
class Job:
    """A sanitizing. `config`: what can change its result, and how it is done, as plain data. `recipes`: nodes of the
    trainings, by their keys in the sanitizer's node.
    """

    config: dict
    recipes: dict[str, dict]
    sanitizer: DataElixir
    poison: Poison
    folder: Path

    @cached_property
    def code(self) -> str:
        """The hash of the code, the plug-ins and the weights."""
        return sources_hash(self.config)

    @property
    def trains_denoiser(self) -> bool:
        """True if the denoiser is trained on the set that is sanitized."""
        return self.sanitizer.denoiser_trained_on == "poisoned"


def configured(words: Sequence[str], config_dirs: Sequence[str] = ()) -> Job:
    """The sanitizing of a command. Raises ValueError for words and values that do not fit."""
    config, names = composed(words, config_dirs)
    sanitizer: DataElixir = make(config, config["sanitizer"])
    poison: Poison = make(config, config["poison"])
    poisoned = sanitizer.denoiser_trained_on == "poisoned"
    check_denoiser(config, poisoned)
    recipes = {
        name: recipe_of(config, name, recipe, sanitizer.seed)
        for name, recipe in sanitizer.trainings.items()
        if name != "denoiser" or poisoned
    }
    for group in ("classifier", "denoiser"):
        if group in recipes and group in words_of(words):
            named = f"{group}={config['choices'][group]}"
            console.print(f"{named} gives only the network; its training is {sanitizer.trainings[group].name}")
    dataset = {key: config["dataset"][key] for key in ("name", "files", "loader") if key in config["dataset"]}
    identity = {"dataset": dataset, **{group: config[group] for group in (*NETWORKS[1:], *DEFAULTS)}}
    identity["classifier"] = unweighted(config["classifier"])
    identity["denoiser"] = unweighted(config["denoiser"]) if poisoned else config["denoiser"]
    identity["training"] = recipes
    how = {key: config[key] for key in ("device", "overwrite", "plugins")}
    choices = {group: config["choices"][group] for group in NETWORKS} | names
    rate = f"-{poison.rate:g}" if poison.known else ""
    key = f"{choices['dataset']}-{names['poison']}{rate}-{sanitizer.denoiser_trained_on}-{digest_of(identity)}"
    folder = Path(config["results"]) / key.replace("/", "_")
    return Job({**identity, **how, "choices": choices}, recipes, sanitizer, poison, folder)


def composed(words: Sequence[str], config_dirs: Sequence[str]) -> tuple[dict, dict[str, str]]:
    """The checked configuration of a command, and the options of its own groups. Raises ValueError for wrong words."""
    names, rest = dict(DEFAULTS), []
    for word in words:
        key, _, value = word.partition("=")
        if key in DEFAULTS:
            names[key] = value
        else:
            rest.append(word)
    for group, name in names.items():
        known = options(group, config_dirs)
        if name not in known:
            raise ValueError(unknown_option(group, name, [*known]))
    for key, word in words_of(rest).items():
        if key.partition(".")[0] not in TAKES:
            top = key.partition(".")[0]
            near = "" if top in GROUPS else near_matches(top, TAKES)
            raise ValueError(f"need {', '.join(TAKES)}, got {word}{near}: a sanitizing has no purifier and no attack")
    groups = [f"+{group}={name}" for group, name in names.items()]
    setup = compose.setup(*REST, *groups, f"results={FOLDER}", *rest, config_dirs=config_dirs)
    config = setup.config
    check_setup(setup._replace(config={key: value for key, value in config.items() if key not in DEFAULTS}))
    same = [f"{group}={config['choices'][group]}" for group in NETWORKS]
    default = plain((*REST, *groups, *same), tuple(map(str, config_dirs)))
    for group in DEFAULTS:
        check_keys({group: config[group]}, {group: default[group]})
        check_kinds({group: config[group]}, {group: default[group]})
        check_finite(config[group], group)
        check_call(compose.arguments(config[group]), group, config["plugins"]["modules"])
    for line in setup.notes:
        console.print(line)
    return config, names


def check_denoiser(config: dict, trained: bool) -> None:
    """Raises ValueError without a denoiser, and for one that needs a network to train and has none."""
    node = config["denoiser"]
    if "_target_" not in node:
        raise ValueError("need a denoiser, got none: set denoiser=NAME")
    for group in ("classifier", "denoiser") if trained else ("classifier",):
        net = compose.arguments(config[group]).get("net")
        if not isinstance(net, dict) or not net.get("net"):
            name = config["choices"][group]
            raise ValueError(f"need a network to train under {group}.net.net, got none in {group}={name}")


def recipe_of(config: dict, name: str, recipe: Recipe, seed: int) -> dict:
    """The node `training` of a recipe with its changes. Raises ValueError for a recipe that does not exist or fit."""
    folders, known = config["plugins"]["folders"], options("training", config["plugins"]["folders"])
    if recipe.name not in known:
        raise ValueError(f"sanitizer.{name}.name: {unknown_option('training', recipe.name, [*known])}")
    same = [f"{group}={config['choices'][group]}" for group in NETWORKS]
    words = [f"+training={recipe.name}", *recipe.words(seed)]
    if name == "finetuning" and recipe.lr is None:
        words.append(f"training.optimizer.lr={FINER * rate_of(recipe.name, same, folders)}")
    try:
        node = plain((*REST, *same, *words), tuple(folders))["training"]
    except USER_ERRORS:  # such as a key of `words` that the recipe lacks
        unchanged(recipe.name, same, folders)
        raise
    check_whole(node, recipe.name)
    check_call({key: node[key] for key in ("data", "task")}, f"training of {recipe.name}", config["plugins"]["modules"])
    check_task(node["task"]["_target_"], name, recipe.name, config["plugins"]["modules"])
    return node


def check_task(target: str, name: str, recipe: str, modules: Sequence[str]) -> None:
    """Raises ValueError if the first argument of a task is declared as another kind of network than is trained."""
    takes = next(iter(inspect.signature(target_of(target, modules)).parameters.values())).annotation
    trained = Denoiser if name == "denoiser" else Classifier
    if isinstance(takes, type) and not (issubclass(takes, trained) or issubclass(trained, takes)):
        kinds = f"need a recipe that trains a {trained.__name__}, got one for a {takes.__name__}"
        raise ValueError(f"{kinds}: sanitizer.{name}.name={recipe}")


def rate_of(name: str, words: Sequence[str], folders: Sequence[str]) -> float:
    """The learning rate of a recipe. Raises ValueError for an optimizer without one."""
    node = unchanged(name, words, folders)
    if not isinstance(node["optimizer"].get("lr"), int | float):
        raise ValueError(f"need training.optimizer.lr in the recipe {name}, got none: set sanitizer.finetuning.lr")
    return node["optimizer"]["lr"]


def unchanged(name: str, words: Sequence[str], folders: Sequence[str]) -> dict:
    """The node `training` of a recipe, without changes. Raises ValueError for a recipe that lacks a key."""
    node = plain((*REST, *words, f"+training={name}"), tuple(folders))["training"]
    check_whole(node, name)
    return node


def plain(words: tuple[str, ...], folders: tuple[str, ...]) -> dict:
    """The plain configuration of these words, a copy of its own. Equal words are composed once in a process."""
    return json.loads(_composed(words, folders))


@functools.cache
def _composed(words: tuple[str, ...], folders: tuple[str, ...]) -> str:
    return json.dumps(compose.composed(*words, config_dirs=folders))


def unweighted(node: dict) -> dict:
    """The node of a network without its weights, which are not used."""
    net = {"net": node["net"]["net"]} if isinstance(node.get("net"), dict) and "net" in node["net"] else node.get("net")
    return {**node, "net": net}


def make(config: dict, node: Any, **more: Any) -> Any:
    """The object of a node. See `compose.make`."""
    return compose.make(node, modules=config["plugins"]["modules"], **more)


def read_summary(folder: Path) -> dict | None:
    """The summary of a finished sanitizing, or None. Raises ValueError for a file that is none."""
    return job_files.read_summary(
        folder,
        FORMAT,
        {"models", "labels", "flagged"},
        "dp sanitize",
        "delete it and start again, which writes it again",
    )


def archive(folder: Path, measured: Path = ARCHIVE) -> Path:
    """Copy the summary, the report and the changed labels of a finished sanitizing below `measured`."""
    if read_summary(folder) is None:
        raise ValueError(f"need a finished sanitizing in {folder}, got none: its command goes on where it stopped")
    return job_files.copy_files(folder, measured, (f"{CHANGES}.csv", REPORT))
