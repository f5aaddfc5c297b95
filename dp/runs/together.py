"""What a run would cost, measured by as many processes as it would have, all at once: each slows the others."""

import dataclasses
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
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
    """The mean of what all workers of a run on this machine measure at once. One worker, and GPUs, of which none slows
    another: this process measures, with its `evaluation`.
    """
    if workers == 1 or evaluation.device != "cpu":
        start = time.process_time()
        return Seen(measured(evaluation), start, _most(evaluation.device))
    context = multiprocessing.get_context("spawn")
    gate, before = (context.Barrier(workers),), _of_children()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=gate) as pool:
        found, spent, memory = zip(*pool.map(_seen, [config] * workers), strict=True)
    return Seen(_mean(found), (_of_children() - before - sum(spent)) / workers, max(memory))


def _begin(gate: Any) -> None:
    global _gate
    _gate = gate
    follow_parent()


def _seen(config: dict) -> tuple[Measured, float, float]:
    """What was measured, the CPU seconds for it, and the most bytes."""
    evaluation = build(config)
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
    work = {arm: _mean_costs([one.work[arm] for one in each]) for arm in each[0].work}
    return each[0]._replace(work=work, whole=all(one.whole for one in each))


def _mean_costs(each: Sequence[Costs]) -> Costs:
    counted = tuple(map(statistics.fmean, zip(*(costs.counted for costs in each), strict=True)))
    return Costs(each[0].steps, counted, statistics.fmean(costs.score for costs in each))
