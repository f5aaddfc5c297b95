"""Units of a run in worker processes of one thread each. On a CPU this is faster than threads, and rows are equal."""

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from dp.evaluation.evaluate import Evaluation
from dp.evaluation.rows import Event, Unit
from dp.output.record import Writer

Build = Callable[[dict], Evaluation]


def run_units(
    build: Build,
    config: dict,
    evaluation: Evaluation,
    units: Sequence[Unit],
    folder: Path,
    shard: str,
    workers: int,
    on_event: Callable[[Event], None],
) -> None:
    """Do all units in `workers` processes and save them under `folder`.

    One worker is this process with its `evaluation`. Of several, each makes its own from `config` by `build`. `shard`
    is part of the names of the files. `on_event` gets the progress. Raises the ValueError or OSError of a worker,
    and OSError if a worker died.
    """
    if workers == 1:
        _work_through(evaluation, units, Writer(folder, f"{shard}-0"), on_event)
        return
    context = multiprocessing.get_context("spawn")
    tasks, events = context.Queue(), context.Queue()
    for unit in units:
        tasks.put(unit)
    for _ in range(workers):
        tasks.put(None)
    processes = [
        context.Process(target=_worker, args=(build, config, folder, f"{shard}-{w}", tasks, events), daemon=True)
        for w in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        _listen(processes, events, on_event)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _listen(processes: list, events, on_event: Callable[[Event], None]) -> None:
    working = len(processes)
    while working:
        try:
            event = events.get(timeout=0.5)
        except queue.Empty:
            dead = [p for p in processes if p.exitcode not in (None, 0)]
            if dead:
                raise OSError(
                    f"a worker died (exit code {dead[0].exitcode}), perhaps out of memory: finished rows are saved; "
                    "start again with fewer workers"
                ) from None
            continue
        if event is None:
            working -= 1
        elif isinstance(event, Exception):
            raise event
        else:
            on_event(event)


def _worker(build: Build, config: dict, folder: Path, label: str, tasks, events) -> None:
    follow_parent()
    try:
        units = iter(tasks.get, None)
        _work_through(build(config), units, Writer(folder, label), events.put)
        events.put(None)
    except (ValueError, OSError) as error:  # sent as these two types, because not every subclass can be pickled
        events.put((ValueError if isinstance(error, ValueError) else OSError)(str(error)))
    except BaseException:
        events.put(RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))


def follow_parent() -> None:
    """Call this in a child process: it ignores interrupts, which the parent handles, and ends with the parent.

    So a killed run leaves no writer behind.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work_through(evaluation: Evaluation, units, writer: Writer, on_event: Callable[[Event], None]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a sum's last bits depend on it
    try:
        for unit in units:
            group = evaluation.run(unit, lambda step, steps, unit=unit: on_event(Event(unit, step, steps)))
            writer.write(group)
            steps = evaluation.arms[unit.arm].attack.steps
            on_event(Event(unit, steps, steps, group.rows))
    finally:
        torch.set_num_threads(threads)
        writer.close()
