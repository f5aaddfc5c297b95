"""How a command ends: the exit code, and one line for any error that a user can cause."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import yaml
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from dp.output.console import console
from dp.spelling import near_matches

USER_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError)
DONE, MISTAKE, INTERRUPTED = 0, 2, 130  # exit codes; 1 is a check that fails
LONG_LIST = 40  # names of options in an error
EXTRAS = {"hydra/sweeper=optuna": "optuna"}  # options that come with an extra of the package


def command(main: Callable[[], int], interrupted: str = "interrupted; the same command goes on") -> int:
    """Run `main` and return its exit code: 2 after a user's error, which is printed in one line, 130 if interrupted."""
    try:
        return main()
    except KeyboardInterrupt as interrupt:
        console.print(str(interrupt) or interrupted)
        return INTERRUPTED
    except USER_ERRORS as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return MISTAKE


@contextmanager
def in_one_line() -> Iterator[None]:
    """Within it, a mistake in a name or a key is a ValueError of one line, as on the command line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(sentence(error)) from error


def sentence(error: BaseException) -> str:
    """The message of an error that a user can cause, in one line."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return sentence(error.__cause__)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if extra := EXTRAS.get(f"{group}={option}"):
            return f"need the extra {extra} for {group}={option}, got none: pip install 'dp-purification[{extra}]'"
        return unknown_option(group, option, error.options)
    if isinstance(error.__cause__, ConfigAttributeError | ConfigKeyError) and error.__cause__.full_key:
        key, parent = error.__cause__.full_key, error.__cause__.parent_node
        known = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
        near = near_matches(key.rpartition(".")[2], known)
        return f"unknown key {key}{near}" + ("" if near else f"; +{key}=... sets one that the yaml leaves out")
    text = str(error)
    return " ".join(text.split("full_key:")[0].split()) or type(error).__name__


def unknown_option(group: str, option: str, known: Sequence[str]) -> str:
    """The message for an option that does not exist. `known`: the names of those of its group."""
    return f"unknown option {group}={option}{near_matches(option, known)}; there are: {', '.join(_listed(known))}"


def _listed(names: Sequence[str]) -> list[str]:
    """The names; of a long list those inside a folder are the folder, once, such as `table1/...`."""
    if len(names) <= LONG_LIST:
        return list(names)
    return list(dict.fromkeys(f"{name.partition('/')[0]}/..." if "/" in name else name for name in names))
