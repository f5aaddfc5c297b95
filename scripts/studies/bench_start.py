"""For bench.py: the CPU seconds from the start of `python run.py` to its first iteration."""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = ("protocol.images=32", "workers=1", "audit=false")  # of the embedded benchmark
SAID = "scored: "  # the line that a run prints when all is built, and the first iteration comes next


def medians(turns: int, *checkouts: Path) -> list[float]:
    """The median of `first_iteration` for each checkout, run in turn. One turn more, the first, only warms up."""
    spent = [[first_iteration(checkout) for checkout in checkouts] for _ in range(turns + 1)]
    return [statistics.median(times) for times in zip(*spent[1:], strict=True)]


def first_iteration(checkout: Path) -> float:
    """The CPU seconds of a run in a checkout, in a process of its own that is stopped before its first iteration.

    Raises ValueError if the run ends before.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "run.py", *WORDS, f"results={folder}"]
        env = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        run = subprocess.Popen(
            words, cwd=checkout, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert run.stdout is not None
        lines = []
        for line in run.stdout:
            lines.append(line.strip())
            if line.startswith(SAID):
                run.kill()
                break
        _, _, used = os.wait4(run.pid, 0)
        run.stdout.close()
    if not lines or not lines[-1].startswith(SAID):
        raise ValueError(f"need a run of {checkout} that says {SAID!r}, got: {lines[-1] if lines else 'nothing'}")
    return used.ru_utime + used.ru_stime
