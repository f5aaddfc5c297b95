"""Signals that stop a run: a termination, and SIGUSR2, by which schedulers announce that they take the machine away."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGUSR2)


def stop(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt. Further signals of this kind are ignored, so that the state can be saved in peace."""
    ignore_stops()
    raise KeyboardInterrupt


def ignore_stops() -> None:
    """From now on these signals do nothing to this process."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)


def stop_when_told() -> None:
    """From now on these signals stop this process, also where it ignores interrupts."""
    for each in STOPS:
        signal.signal(each, stop)


@contextmanager
def stoppable() -> Iterator[None]:
    """These signals stop what is done inside."""
    before = [signal.getsignal(each) for each in STOPS]
    stop_when_told()
    try:
        yield
    finally:
        for each, handler in zip(STOPS, before, strict=True):
            signal.signal(each, handler)
