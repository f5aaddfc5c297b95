"""Sweeps through submitit: jobs that a scheduler takes the machine from go on, and shards end in one row."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import submitit.local.local as submitit_local
from kills import count_evaluations, counted, new_counter
from submitit.core.submission import process_job
from torch import nn

from dp.commands.run import main
from tests.helpers.compose import TINY
from tests.helpers.processes import ended, forked, wait

ROOT = Path(__file__).parents[2]
LONG = [*TINY, "protocol.seeds=[5]", "attack.iterations=20", "save_every=1000", "audit=false", "workers=1"]
REQUEUE = submitit_local.LOCAL_REQUEUE_RETURN_CODE


class Controller:
    """What submitit's own does for a job, in copies of this process, which need no seconds for imports.

    `counter`: file of network evaluations; the job gets SIGUSR2 at each of `moments` of them.
    """

    def __init__(self, folder: Path, counter: Path, moments: list[int]):
        self.folder, self.counter, self.moments = folder, counter, moments
        self.starts = new_counter(counter.with_suffix(".starts"))
        self.pid = forked(self.run, counter.with_suffix(".out"))

    def poll(self) -> int | None:
        return 0 if ended(self.pid) else None

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


def test_a_preempted_job_goes_on_twice(tmp_path, monkeypatch):
    controllers = []

    def run(name: str, moments: list[int]) -> tuple[int, bytes]:
        def start(folder, **given):
            controllers.append(Controller(folder, new_counter(tmp_path / f"{name}.count"), moments))
            return controllers[-1]

        monkeypatch.setattr(submitit_local, "start_controller", start)
        jobs = f"hydra.launcher.submitit_folder={tmp_path}/{name}.jobs/%j"
        monkeypatch.setattr(sys, "argv", ["run.py", "-m", "+slurm=local", jobs, *LONG, f"results={name}"])
        assert main() == 0
        return counted(tmp_path / f"{name}.count"), next(Path(name).glob("*/images.jsonl")).read_bytes()

    monkeypatch.chdir(tmp_path)
    plain, rows = run("plain", [])
    preempted, again = run("preempted", [plain // 4, plain // 2])
    assert [counted(controller.starts) for controller in controllers] == [1, 3]
    assert again == rows
    assert plain < preempted <= 1.3 * plain


def test_shards_as_jobs_are_one_row(tmp_path):
    """By submitit's own processes."""
    words = [*TINY, "protocol.seeds=[5]", "attack.iterations=1", "protocol.votes=1", "audit=false", "workers=1"]
    command = [sys.executable, str(ROOT / "run.py"), "-m", "+slurm=local", *words, "shard=1/2,2/2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 runs, 0 failed" in done.stdout
    (table,) = (tmp_path / "results" / "sweeps").iterdir()
    assert pd.read_csv(table)["error"].isna().all()
    (rows,) = (tmp_path / "results" / "runs").glob("*/images.jsonl")
    assert len(rows.read_text().splitlines()) == 4 * 3


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
