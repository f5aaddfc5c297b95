"""Signals that stop a run: a termination, and SIGUSR2, by which schedulers announce that they take the machine away."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGUSR2)


def stop(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt. Further signals of this kind are ignored, so that the state can be saved in peace."""
    ignore_stops()
    raise KeyboardInterrupt


def ignore_stops() -> None:
    """From now on these signals do nothing to this process."""
    for each in STOPS:
        signal.signal(each, lambda number, frame: None)  # not SIG_IGN: Python complains of signals already on their way


def stop_when_told() -> None:
    """From now on these signals stop this process, also where it ignores interrupts."""
    for each in STOPS:
        signal.signal(each, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


@contextmanager
def spared() -> Iterator[None]:
    """A process that is started inside does not see SIGUSR2, whose default is death, before it asks for it.

    A scheduler may send it to every process of a job, also to those that Python has started for itself.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])


@contextmanager
def _handled(take: Callable[[], None]) -> Iterator[None]:
    """`take` sets the handlers of these signals. Afterwards the earlier ones are back."""
    before = [signal.getsignal(each) for each in STOPS]
    take()
    try:
        yield
    finally:
        for each, handler in zip(STOPS, before, strict=True):
            signal.signal(each, handler)


def stoppable() -> AbstractContextManager[None]:
    """These signals stop what is done inside."""
    return _handled(stop_when_told)


def undisturbed() -> AbstractContextManager[None]:
    """These signals do nothing to what is done inside, such as saving a state after the first of them."""
    return _handled(ignore_stops)
