"""dp run: compose a configuration, attack and score its defense, and print the table row."""

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dp.output.console import console
from dp.runs import compose, help
from dp.runs.errors import DONE, INTERRUPTED, MISTAKE, USER_ERRORS, sentence
from dp.runs.keys import run_key
from dp.runs.signals import stoppable
from dp.runs.sweep import begin_sweep, finish_sweep, note_cell

failures: list[str] = []  # of this process's runs


def help_text(*, _root_: Any) -> str:
    """${dp_help:}: the help, as a template of Hydra's, with the options of --config-dir."""
    return help.text(compose.plugin_folders(_root_.hydra)).replace("$", "$$")


OmegaConf.register_new_resolver("dp_help", help_text, replace=True)


@hydra.main(version_base=compose.VERSION_BASE, config_path=str(compose.CONF), config_name="config")
def job(cfg: DictConfig) -> None:
    """Hydra's entry. Launchers pickle it for other processes, so it holds nothing."""
    one(cfg)


def one(cfg: DictConfig) -> None:
    """One run, or one cell of a sweep. A user's error is noted, not raised, so that the other cells go on."""
    from dp.output.report import show  # here: --help needs neither torch nor pandas
    from dp.runs.pipeline import judged

    folder, summary, error = None, None, None
    try:
        setup = compose.setup_of(cfg)
        folder = Path(setup.config["results"]) / run_key(setup.config)
        summary = judged(setup, folder)
        if summary is None:
            error = "waits for the other shards"
        else:
            show(summary, console)
        console.print(f"results: {folder}")
    except USER_ERRORS as caught:
        error = sentence(caught)
        print(f"error: {error}", file=sys.stderr)
        failures.append(error)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        note_cell(HydraConfig.get().overrides.task, folder, summary, error)


def main() -> int:
    """Run what the command line asks for. Returns 0 if done, 2 after a user's error, 130 if interrupted."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors arrive here
    failures.clear()
    notes = begin_sweep()
    try:
        with stoppable():
            job()
    except KeyboardInterrupt as stop:
        console.print(str(stop) or "interrupted before anything was scored; the same command starts again")
        return INTERRUPTED
    except USER_ERRORS as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return MISTAKE
    finally:
        failed = finish_sweep(notes)
    return MISTAKE if failures or failed else DONE
