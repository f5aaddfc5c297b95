"""File locks, which some network disks do not have."""

import fcntl
import time
from typing import TextIO

from dp.files.cache import NO_LOCKS


def take_lock(lock: TextIO, what: str, patience: float) -> bool:
    """Lock an open file. Waits up to `patience` seconds, because the workers of a killed run need a moment to end.

    Returns False if the disk has no file locks.
    """
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                raise OSError(
                    f"need {what} for one run at a time, got another process writing it: wait for it or stop it"
                ) from None
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
