"""Compose a configuration, attack and score its defense, and print the table row: python run.py [group=option]
[key=value] ...
"""

import os
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dp.output.console import console
from dp.runs import compose
from dp.runs.errors import DONE, INTERRUPTED, MISTAKE, USER_ERRORS, sentence
from dp.runs.sweep import begin_sweep, finish_sweep, note_cell

failures: list[str] = []  # of this process's runs


@hydra.main(version_base=compose.VERSION_BASE, config_path=str(compose.CONF), config_name="config")
def main(cfg: DictConfig) -> None:
    """Hydra's entry; a launcher may pickle it, so it holds nothing."""
    one(cfg)


def one(cfg: DictConfig) -> None:
    """One run, or one cell of a sweep. A user's error is noted, not raised, so that the other cells go on."""
    from dp.output.report import show  # here: --help needs neither torch nor pandas
    from dp.runs.pipeline import judged

    folder, summary, error = None, None, None
    try:
        setup = compose.setup_of(cfg)
        folder = Path(setup.config["results"]) / compose.run_key(setup.config)
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


def cli() -> int:
    """0 done, 2 a user's error in one line, 130 interrupted."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors arrive here
    notes = begin_sweep()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # also where SIGINT is ignored
    try:
        main()
    except KeyboardInterrupt as stop:
        console.print(str(stop) or "interrupted before anything was scored; the same command starts again")
        return INTERRUPTED
    except USER_ERRORS as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return MISTAKE
    finally:
        failed = finish_sweep(notes)
        signal.signal(signal.SIGTERM, before)
    return MISTAKE if failures or failed else DONE


if __name__ == "__main__":
    import run  # launchers and workers import what they are sent by this name

    sys.exit(run.cli())
