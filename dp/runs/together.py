"""What a run would cost, measured by as many processes as it would have, all at once: each slows the others."""

import dataclasses
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from dp.evaluation.evaluate import Evaluation
from dp.evaluation.work import Costs
from dp.runs.build import build
from dp.runs.engines.interface import sendable
from dp.runs.signals import spared, undisturbed
from dp.runs.timing import Measured, measured
from dp.runs.workers import end, follow_parent, listen


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
    context, before = multiprocessing.get_context("spawn"), _of_children()
    seen: list[tuple[Measured, float, float]] = []
    with spared():
        events = context.Queue()
        processes = [context.Process(target=_measure, args=(config, events), daemon=True) for _ in range(workers)]
        for process in processes:
            process.start()
    try:
        listen(processes, events, seen.append)
        for process in processes:
            process.join()
    finally:
        with undisturbed():
            end(processes)
    found, spent, memory = zip(*seen, strict=True)
    return Seen(_mean(found), (_of_children() - before - sum(spent)) / workers, max(memory))


def _measure(config: dict, events: Any) -> None:
    """In a worker: put what was measured, the CPU seconds for it and the most bytes, and None; or the error."""
    follow_parent()
    try:
        evaluation = build(config)
        before = time.process_time()
        found = measured(evaluation)
        events.put((found, time.process_time() - before, _most(evaluation.device)))
        events.put(None)
    except BaseException as error:
        events.put(sendable(error))


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
