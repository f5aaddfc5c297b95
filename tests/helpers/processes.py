"""Processes that a test starts, kills and waits for, without the seconds that a fresh interpreter needs for torch."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def forked(work: Callable[[], int], stdout: Path, folder: Path | None = None, interrupts: Any = None) -> int:
    """A copy of this process that does the work and ends with the code that it returns; the process's id.

    `stdout`: file for what it prints; `folder`: its working folder; `interrupts`: how it takes SIGINT.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with stdout.open("w") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
                sys.stdout = sys.stderr = out
                os.chdir(folder or Path.cwd())
                signal.signal(signal.SIGINT, interrupts or signal.default_int_handler)
                code = work()
        finally:
            os._exit(code)  # neither pytest's own end nor its report
    return child


def ended(child: int) -> bool:
    """Whether the process has ended; it can still be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait(child: int) -> int:
    """The exit code of a process when it has ended; that of a killed one is minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
