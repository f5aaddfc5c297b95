"""A disk without file locks, as some network disks are, and what a run then says."""

import errno

SAID = "is on a disk without file locks: start this command only once at a time"


def no_locks(file, operation) -> None:
    """In the place of `fcntl.flock`."""
    raise OSError(errno.ENOLCK, "No locks available")
