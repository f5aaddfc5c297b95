"""How long a queue of units takes several workers: each takes the next unit as soon as it is free."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple


class Schedule(NamedTuple):
    """`seconds`: from the start to the end of the last unit. `idle`: the share of all workers' time without a unit."""

    seconds: float
    idle: float


def schedule(units: Sequence[float], workers: int) -> Schedule:
    """The schedule of units, by their seconds in the order of the queue. Raises ValueError for workers < 1."""
    if workers < 1:
        raise ValueError(f"need workers >= 1, got workers={workers}")
    free = [0.0] * workers
    for seconds in units:
        heapq.heapreplace(free, free[0] + seconds)
    end = max(free)
    return Schedule(end, max(0.0, 1 - sum(units) / (workers * end)) if end else 0.0)
