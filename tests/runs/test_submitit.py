"""Sweeps through submitit: jobs that a scheduler takes the machine from go on, and shards end in one row."""

import errno
import fcntl
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import submitit.local.local as submitit_local
from kills import count_evaluations, counted, new_counter
from submitit.core.submission import process_job
from torch import nn

from dp.commands.run import main
from tests.helpers.compose import TINY
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


def no_locks(file, operation):
    raise OSError(errno.ENOLCK, "No locks available")


def test_cells_and_shards_as_jobs(sweep, capsys, monkeypatch):
    """Four jobs: two runs, each in two shards. The disk has no file locks."""
    monkeypatch.setattr(fcntl, "flock", no_locks)
    words = ["protocol.images=4", "protocol.votes=1", "attack=none", "audit=false", "workers=1", "purifier=none"]
    code, controllers = sweep("jobs", *words, "protocol.seeds=[5],[6]", "shard=1/2,2/2")
    assert (code, len(controllers)) == (0, 4)
    assert "2 runs, 0 failed" in capsys.readouterr().out
    (table,) = Path("results/sweeps").glob("*.csv")
    assert pd.read_csv(table)["overrides"].str.contains("shard").sum() == 0
    assert [len(path.read_text().splitlines()) for path in Path("jobs").glob("*/images.jsonl")] == [12, 12]


def test_a_lost_job_is_one_line(tmp_path, monkeypatch, capsys):
    class Lost:
        pid = 1

        def poll(self):
            return -signal.SIGKILL

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submitit_local, "start_controller", lambda **given: Lost())
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", "+slurm=local", *LONG])
    assert main() == 2
    err = capsys.readouterr().err
    assert err.startswith("error: a job was lost, the others go on (dp sweep shows them): ")
    assert err.count("\n") == 1
