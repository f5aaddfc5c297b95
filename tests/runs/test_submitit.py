"""Sweeps through submitit: jobs that a scheduler takes the machine from go on, and shards end in one row."""

import fcntl
import os
import signal
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import submitit.local.local as submitit_local
from kills import count_evaluations, counted, new_counter
from submitit.core.submission import process_job
from torch import nn

from dp.commands.run import main
from dp.runs.keys import run_key
from tests.helpers.compose import TINY, composed, finished
from tests.helpers.locks import SAID, no_locks
from tests.helpers.processes import ended, forked, wait

LONG = [*TINY, "protocol.seeds=[5]", "attack.iterations=12", "save_every=1000", "audit=false", "workers=1"]
REQUEUE = submitit_local.LOCAL_REQUEUE_RETURN_CODE


class Controller:
    """What submitit's own does for a job, in copies of this process, which need no seconds for imports.

    `counter`: file of network evaluations; the job gets SIGUSR2 at each of `moments` of them.
    """

    def __init__(self, folder: Path, counter: Path, moments: list[int]):
        self.folder, self.counter, self.moments = folder, counter, moments
        self.starts = new_counter(counter.with_suffix(".starts"))
        self.code: int | None = None
        self.pid = forked(self.run, counter.with_suffix(".out"))

    def poll(self) -> int | None:
        if self.code is None and ended(self.pid):
            self.code = wait(self.pid)
        return self.code

    def run(self) -> int:
        os.environ |= {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": str(os.getpid())}
        os.environ |= {"SUBMITIT_LOCAL_NTASKS": "1", "SUBMITIT_LOCAL_GLOBALID": "0"}
        code = REQUEUE
        while code == REQUEUE:
            number = np.memmap(self.starts, dtype=np.int64, mode="r+", shape=(1,))
            number[0] += 1
            code = wait(forked(self.job, self.counter.with_suffix(f".{number[0]}.out")))
        return code

    def job(self) -> int:
        count_evaluations(self.counter)
        nn.modules.module.register_module_forward_pre_hook(self.preempt)
        try:
            process_job(self.folder)
        except SystemExit as left:
            return left.code
        return 0

    def preempt(self, module: nn.Module, args: tuple) -> None:
        done = counted(self.starts) - 1
        if done < len(self.moments) and counted(self.counter) >= self.moments[done]:
            os.kill(os.getpid(), signal.SIGUSR2)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Runs `python run.py -m +slurm=local overrides...` with such controllers. Returns the exit code and these."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *overrides: str, moments=()) -> tuple[int, list[Controller]]:
        controllers = []

        def start(folder, **given):
            counter = new_counter(tmp_path / f"{name}{len(controllers)}.count")
            controllers.append(Controller(folder, counter, moments))
            return controllers[-1]

        monkeypatch.setattr(submitit_local, "start_controller", start)
        jobs = f"hydra.launcher.submitit_folder={tmp_path}/{name}.jobs/%j"
        monkeypatch.setattr(sys, "argv", ["run.py", "-m", "+slurm=local", jobs, *overrides, f"results={name}"])
        return main(), controllers

    return run


def test_a_preempted_job_goes_on_twice(sweep):
    code, (whole,) = sweep("whole", *LONG)
    plain = counted(whole.counter)
    again, (preempted,) = sweep("preempted", *LONG, moments=[plain // 4, plain // 2])
    assert (code, again) == (0, 0)
    assert (counted(whole.starts), counted(preempted.starts)) == (1, 3)
    one, two = (next(Path(name).glob("*/images.jsonl")).read_bytes() for name in ("whole", "preempted"))
    assert one == two
    assert plain < counted(preempted.counter) <= 1.3 * plain


SEEDS = ["protocol.seeds=[5]", "protocol.seeds=[6]"]
PURIFIERS = ["purifier=hetero", "purifier=diffpure"]
ROW = [[PURIFIERS[1], SEEDS[0]]]  # one cell
TWO = ("shard=1/2,2/2", *ROW[0])
FOUR = ("protocol.images=8", "shard=1/4,2/4,3/4,4/4", *ROW[0])
CELLS = ("purifier=hetero,diffpure", "protocol.seeds=[5],[6]")


@pytest.mark.parametrize(
    ("swept", "jobs", "cells", "locks"),
    [
        pytest.param(TWO, 2, ROW, False, id="two shards, no locks"),
        pytest.param(FOUR, 4, [["protocol.images=8", *ROW[0]]], True, id="four shards"),
        pytest.param(FOUR, 4, [["protocol.images=8", *ROW[0]]], False, id="four shards, no locks"),
        pytest.param(CELLS, 4, [list(cell) for cell in product(PURIFIERS, SEEDS)], True, id="four cells"),
        pytest.param(CELLS, 4, [list(cell) for cell in product(PURIFIERS, SEEDS)], False, id="four cells, no locks"),
    ],
)
def test_jobs_give_the_rows_of_one_process(swept, jobs, cells, locks, sweep, tmp_path, capsys, monkeypatch):
    """Cells, or shards of one row, against undisturbed runs of the engine `local` in this process."""
    words, configs = [*TINY, "audit=false", "workers=1"], {}
    for cell in cells:
        config = composed(*words, *cell)
        configs[run_key(config)] = config
        assert finished(config, tmp_path / "local" / run_key(config))
    if not locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    capsys.readouterr()
    code, controllers = sweep("jobs", *words, *swept)
    assert (code, len(controllers), len(configs)) == (0, jobs, len(cells))
    assert f"{len(cells)} runs, 0 failed" in capsys.readouterr().out
    (table,) = Path("results/sweeps").glob("*.csv")
    lines = pd.read_csv(table)["overrides"]
    assert (len(lines), lines.str.contains("shard").sum()) == (len(cells), 0)
    for controller in controllers:
        assert (SAID in controller.counter.with_suffix(".1.out").read_text()) == (not locks)
    found, expected = (
        {path.parent.name: path.read_bytes() for path in Path(name).glob("*/images.jsonl")}
        for name in ("jobs", "local")
    )
    assert expected.keys() == configs.keys()
    assert found == expected


def test_a_lost_job_is_one_line(tmp_path, monkeypatch, capsys):
    class Lost:
        pid = 1

        def poll(self):
            return -signal.SIGKILL

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submitit_local, "start_controller", lambda **given: Lost())
    monkeypatch.setattr(submitit_local.LocalJob, "_results_timeout_s", 0)  # for slow disks
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", "+slurm=local", *LONG])
    assert main() == 2
    err = capsys.readouterr().err
    assert err.startswith("error: a job was lost, the others go on (dp sweep shows them): ")
    assert err.count("\n") == 1
