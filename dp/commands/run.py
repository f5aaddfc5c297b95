"""dp run: compose a configuration, attack and score its defense, and print the table row."""

import gc
import os
import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dp.output.console import console
from dp.runs import compose, help, words
from dp.runs.errors import DONE, INTERRUPTED, MISTAKE, USER_ERRORS, sentence
from dp.runs.signals import stoppable
from dp.runs.sweep import begin_sweep, finish_sweep, note_cell

failures: list[str] = []  # the errors of runs in this process


def help_text(*, _root_: Any) -> str:
    """The resolver ${dp_help:}: the help text as a template for Hydra, with the options of --config-dir."""
    return help.text(compose.plugin_folders(_root_.hydra)).replace("$", "$$")


OmegaConf.register_new_resolver("dp_help", help_text, replace=True)


@hydra.main(version_base=compose.VERSION_BASE, config_path=str(compose.CONF), config_name="config")
def job(cfg: DictConfig) -> float | None:
    """Hydra's entry. Launchers pickle it for other processes, so it holds no objects."""
    return one(cfg)


def one(cfg: DictConfig) -> float | None:
    """One run, alone or in a sweep. A user's error is printed and not raised, so that a sweep goes on.

    Returns what a sweeper that searches maximizes, or None if the run has no summary.
    """
    from dp.output.report import average, show  # imported here: --help needs no torch
    from dp.runs.lanes import with_lanes
    from dp.runs.pipeline import folder_of, judged

    hydra, folder, error, summary = HydraConfig.get(), None, None, None
    try:
        setup = compose.setup_of(cfg)
        gc.enable()
        setup = with_lanes(setup)
        if setup.config.get("cost", False) is not False:  # a key that is taken out is refused later
            from dp.runs.cost import show_cost

            cost = show_cost(setup)
            if hydra.mode == RunMode.MULTIRUN:
                note_cell(hydra.job.num, hydra.overrides.task, None, cost=dict(cost))
            return None
        folder = folder_of(setup)
        if hydra.mode == RunMode.MULTIRUN:
            note_cell(hydra.job.num, hydra.overrides.task, folder)
        summary = judged(setup, folder)
        if summary is not None:
            show(summary, console)
        console.print(f"results: {folder}")
    except USER_ERRORS as caught:
        error = sentence(caught)
        print(f"error: {error}", file=sys.stderr)
        failures.append(error)
    except Exception as bug:
        if hydra.mode == RunMode.MULTIRUN:
            note_cell(hydra.job.num, hydra.overrides.task, folder, f"{type(bug).__name__}: {bug}")
        raise
    if hydra.mode == RunMode.MULTIRUN and error is not None:
        note_cell(hydra.job.num, hydra.overrides.task, folder, error)
    return None if summary is None else average(summary)


def launcher_errors() -> tuple[type[BaseException], ...]:
    """The errors that tell of a lost job. There are none if no launcher of a cluster was loaded."""
    submitit = sys.modules.get("submitit.core.utils")
    return () if submitit is None else (submitit.UncompletedJobError, submitit.FailedSubmissionError)


def main() -> int:
    """The command. Returns 0 if all is done, 2 after a user's error, 130 if interrupted."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises errors instead of printing them
    gc.disable()  # until all is imported and composed: to look for garbage then takes long and finds none
    failures.clear()
    notes, ended = begin_sweep(), False
    try:
        with stoppable():
            words.check_words(sys.argv[1:], words.check_flags(sys.argv[1:]))
            job()
        ended = True
    except KeyboardInterrupt as interrupt:
        console.print(str(interrupt) or "interrupted before anything was scored; the same command starts again")
        return INTERRUPTED
    except USER_ERRORS as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return MISTAKE
    except launcher_errors() as error:
        print(f"error: a job was lost, the others go on (dp sweep shows them): {sentence(error)}", file=sys.stderr)
        return MISTAKE
    finally:
        gc.enable()
        failed = finish_sweep(notes, ended)
    return MISTAKE if failures or failed else DONE
