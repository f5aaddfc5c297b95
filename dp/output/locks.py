"""File locks, which some network disks do not have."""

import fcntl
import time
from typing import TextIO

from dp.files.cache import NO_LOCKS
from dp.output.console import console


def take_lock(lock: TextIO, what: str, patience: float) -> None:
    """Lock an open file. Waits up to `patience` seconds, because the workers of a killed run need a moment to end.

    Where the disk has no file locks, it prints so, and nothing is locked. Raises OSError if the file stays locked.
    """
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise OSError(
                    f"need {what} for one run at a time, got another process writing it: wait for it or stop it"
                ) from None
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            console.print(f"note: {what} is on a disk without file locks: start this command only once at a time")
            return
