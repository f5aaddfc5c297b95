"""The words of a command line: what they set, and what is wrong with them before Hydra reads them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from dp.runs.by_dataset import CONF
from dp.runs.errors import unknown_option

GROUPS = ("dataset", "classifier", "denoiser", "purifier", "attack", "threat_model", "protocol", "engine", "tracking")
UNCHOSEN = ("engine", "tracking")  # groups that cannot change a row, and are no part of a run's choices
PRESETS = "experiment"
HYDRA = ("launcher", "sweeper", "mode", "searchpath", "verbose")  # what a command may change of Hydra's own node
OPTION = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*")  # the name of an option: that of a yaml below the folder of its group
SUFFIX = re.compile(r"\.ya?ml(?=,|$)")


def check_words(words: Iterable[str], folders: Sequence[str] = ()) -> None:
    """Check a command before Hydra reads it: what Hydra would run at once, or answer with a traceback.

    Raises ValueError for what is no name of an option in its place, for a `_target_` in Hydra's own node, and for a
    folder that does not exist.
    """
    for word in words:
        key, _, value = word.partition("=")
        if key.strip()[:1] == "~" and key.strip()[1:] in GROUPS:
            raise ValueError(
                f"need an option of each group, got {word}: choose another one, as in {key.strip()[1:]}=NAME"
            )
        if key.strip()[:1] == "+" and key.strip().lstrip("+") in GROUPS:
            raise ValueError(f"need one option of each group, got {word}: write {key.strip().lstrip('+')}=NAME")
        if key.lstrip("+").partition("@")[0].strip() in (*GROUPS, PRESETS):
            names = _check_option(key, value.strip(), word)
            if key.strip() == f"+{PRESETS}":
                _check_presets(names, folders)
        top, _, node = key.lstrip("+~ ").partition(".")
        if top == "hydra" and "_target_" in word:
            raise ValueError(
                f"need no _target_ in the node hydra, got {word}: choose options, as in hydra/launcher=NAME"
            )
        if top == "hydra" and node.partition(".")[0].strip() not in HYDRA:
            raise ValueError(f"need hydra.{', hydra.'.join(HYDRA)}, got {word}: a run has its own folders")
    for folder in folders:
        check_folder(Path(folder))


def _check_option(key: str, value: str, word: str) -> list[str]:
    """The names of options that a word has, for a sweep several. Text with $, quotes or () is Hydra's to read."""
    if word.startswith("~") or set(value) & set("$()'\""):
        return []
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if not OPTION.fullmatch(name) or SUFFIX.search(name):
            advice = "a name is that of a yaml file, without its folder and its suffix"
            raise ValueError(f"need the name of an option for {key}, such as {key}=NAME, got {word}: {advice}")
    return names


def _check_presets(names: Iterable[str], folders: Iterable[str]) -> None:
    """Check that there are presets of these names."""
    roots = [Path(folder) / PRESETS for folder in (CONF, *folders)]
    known = sorted({p.relative_to(root).with_suffix("").as_posix() for root in roots for p in root.rglob("*.yaml")})
    for name in names:
        if name not in known:
            raise ValueError(unknown_option(f"+{PRESETS}", name, known))


def check_flags(words: Sequence[str]) -> list[str]:
    """The folders of --config-dir. Raises ValueError for flags that Hydra does not know, or values of them."""

    parser = get_args_parser()
    parser.error = _refuse  # pyright: ignore[reportAttributeAccessIssue]
    given = parser.parse_args([word for word in words if word != "--version"])
    if given.experimental_rerun is not None:
        raise ValueError("need no --experimental-rerun, which would execute a pickle: the same command goes on")
    if given.package is not None and given.cfg is None:
        raise ValueError("need --package together with --cfg job, got --package alone")
    if given.config_path is not None or given.config_name not in (None, "config"):
        raise ValueError(
            "need the yamls of dp, got --config-path or --config-name: --config-dir adds a folder of yours"
        )
    return [given.config_dir] if given.config_dir is not None else []


def _refuse(message: str) -> NoReturn:
    unread = message.partition("unrecognized arguments: ")[2].split()
    if unread and not any(word.startswith("-") for word in unread):
        raise ValueError(f"need flags such as -m before all key=value words, got one before {unread[0]}")
    raise ValueError(f"need a flag as --hydra-help lists them, got: {message}")


def check_folder(folder: Path) -> None:
    """Raises ValueError if there is no such folder of yamls."""
    if not folder.is_dir():
        raise ValueError(f"need a folder of yamls for --config-dir, got {folder}, and there is no such folder")


def check_overrides(given: Sequence[str]) -> None:
    """Raises ValueError for key={}: Hydra merges it into the existing mapping, so it changes nothing."""
    idle = [o for o in given if re.fullmatch(r"[^+~=]+=\s*\{\s*\}", o)]
    if idle:
        key = idle[0].partition("=")[0]
        raise ValueError(f"need something to set, got {idle[0]}, which changes nothing: ~{key}.NAME takes one out")


def value_of(override: str) -> Any:
    """The value of `key=value`, by the grammar of the command line. Raises Hydra's error for other text."""
    return OverridesParser.create().parse_override(override).value()


def words_of(overrides: Sequence[str]) -> dict[str, str]:
    """The words of a command by the dotted key or group that they set, by the grammar of the command line."""
    return {o.key_or_group: o.input_line or "" for o in OverridesParser.create().parse_overrides(list(overrides))}
