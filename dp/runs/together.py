"""What a run would cost, measured by as many processes as it would have, all at once: each slows the others."""

import dataclasses
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from threading import BrokenBarrierError
from typing import Any

import torch

from dp.evaluation.evaluate import Evaluation
from dp.evaluation.work import Costs
from dp.runs.build import build
from dp.runs.timing import Measured, measured
from dp.runs.workers import follow_parent

_gate: Any = None  # of a worker: where it waits for the others, so that all measure at the same time


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one process measured. `start`: CPU seconds of its start, for a worker of its end, too; `memory`: the most
    bytes that it needed.
    """

    found: Measured
    start: float
    memory: float


def seen_together(config: dict, evaluation: Evaluation, workers: int) -> Seen:
    """The mean of what all workers of a run on this machine measure at once. With one worker, or on a GPU, this process
    measures alone, with its `evaluation`. Raises the error of a worker, and OSError if a worker died.
    """
    if workers == 1 or evaluation.device != "cpu":
        start = time.process_time()
        return Seen(measured(evaluation), start, _most(evaluation.device))
    context = multiprocessing.get_context("spawn")
    gate, before = (context.Barrier(workers),), _of_children()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=gate) as pool:
        try:
            found, spent, memory = zip(*_results([pool.submit(_seen, config) for _ in range(workers)]), strict=True)
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()  # a stopped command does not wait for them
            raise
    return Seen(_mean(found), (_of_children() - before - sum(spent)) / workers, max(memory))


def _results(futures: Sequence[Future]) -> list[tuple[Measured, float, float]]:
    """What all workers return. Raises the first error that is not the end of the others' waiting."""
    wait(futures)
    errors = [error for future in futures if (error := future.exception()) is not None]
    if any(isinstance(error, BrokenProcessPool) for error in errors):
        raise OSError("a measuring process died, perhaps out of memory: workers=1 measures in one process alone")
    for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]


def _begin(gate: Any) -> None:
    global _gate
    _gate = gate
    follow_parent()


def _seen(config: dict) -> tuple[Measured, float, float]:
    """What was measured, the CPU seconds for it, and the most bytes."""
    try:
        evaluation = build(config)
    except BaseException:
        _gate.abort()  # the others wait for this one
        raise
    _gate.wait()
    before = time.process_time()
    found = measured(evaluation)
    return found, time.process_time() - before, _most(evaluation.device)


def _of_children() -> float:
    """The CPU seconds of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _most(device: str) -> float:
    """The most bytes that this process, or its part of a GPU, has needed."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _mean(each: Sequence[Measured]) -> Measured:
    """The mean of measurements of one kind: of whole samples only if all are."""
    whole = all(one.whole for one in each)
    same = [one for one in each if one.whole == whole]
    return same[0]._replace(work={arm: _mean_costs([one.work[arm] for one in same]) for arm in same[0].work})


def _mean_costs(each: Sequence[Costs]) -> Costs:
    counted = tuple(map(statistics.fmean, zip(*(costs.counted for costs in each), strict=True)))
    return Costs(each[0].steps, counted, statistics.fmean(costs.score for costs in each))
