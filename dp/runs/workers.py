"""Units of a run in worker processes of one thread each. On a CPU this is faster than threads, and rows are equal."""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from dp.evaluation.evaluate import Evaluation
from dp.evaluation.loss_curve import Point
from dp.evaluation.rows import Event, Group, Unit
from dp.evaluation.snapshot import Snapshot
from dp.output.console import console
from dp.output.record import Writer
from dp.output.snapshots import Keeper, Snapshots, unused
from dp.runs.engines.interface import OnEvent, Work, sendable
from dp.runs.keys import run_key
from dp.runs.machine import at_place
from dp.runs.signals import ignore_stops, spared, stop_when_told, undisturbed
from dp.runs.sources import sources_hash

PATIENCE = 30.0  # seconds that a stopped worker has to save its state, as long as SLURM waits before it kills
OWN_SIGNAL = 5.0  # seconds in which a signal that was sent to all processes reaches this one, too


def run_units(work: Work, evaluation: Evaluation, places: Sequence[str], on_event: OnEvent) -> None:
    """Do all units in one process for each place and save them. `places`: names of devices.

    One worker is this process with its `evaluation`. Of several, each makes its own by `work.build`. `on_event` gets
    the progress. Raises the ValueError or OSError of a worker, and OSError if a worker died.
    """
    if len(places) <= 1:
        _work_through(evaluation, work.config, work.units, _writer(work, 0), on_event)
        return
    context = multiprocessing.get_context("spawn")
    with spared():
        tasks, events = context.Queue(), context.Queue()
        tasks.cancel_join_thread()  # what no worker has read must not keep this process from its end
        for unit in [*work.units, *[None] * len(places)]:
            tasks.put(unit)
        processes = [
            context.Process(target=_worker, args=(work._replace(units=()), places, w, tasks, events), daemon=True)
            for w in range(len(places))
        ]
        for process in processes:
            process.start()
    try:
        listen(processes, events, on_event)
    finally:
        with undisturbed():
            end(processes)


def end(processes: list) -> None:
    """Stop the workers, which save their state first. One that does not end in time is killed."""
    until = time.monotonic() + PATIENCE
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()


def listen(processes: list, events, on_event: Callable[[Any], None]) -> None:
    """Hand on what the workers put into `events`, until each has put None. Raises an error that one put there, and
    OSError if one died.
    """
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
        elif isinstance(event, BaseException):
            if isinstance(event, KeyboardInterrupt):
                time.sleep(OWN_SIGNAL)  # the handler of this process may do more, such as start the job again
            raise event
        else:
            on_event(event)


def _worker(work: Work, places: Sequence[str], w: int, tasks, events) -> None:
    follow_parent()
    stop_when_told()
    try:
        evaluation, units = work.build(at_place(work.config, places, w)), iter(tasks.get, None)
        _work_through(evaluation, work.config, units, _writer(work, w), events.put)
        events.put(None)
    except KeyboardInterrupt:  # by the parent; or by the system, and then the parent has to stop too
        events.put(KeyboardInterrupt())
    except BaseException as error:
        events.put(sendable(error))
    finally:
        ignore_stops()  # there is nothing left to save, and the parent ends its workers by such a signal


def _writer(work: Work, w: int) -> Writer:
    return Writer(work.folder, f"{work.shard}-{w}")


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


def _work_through(
    evaluation: Evaluation, config: dict, units: Iterable[Unit], writer: Writer, on_event: OnEvent
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a sum's last bits depend on it
    snapshots = Snapshots(writer.folder, run_key(config), sources_hash(config))
    try:
        for unit in units:
            group = _work(evaluation, unit, Keeper(snapshots, unit, config["save_every"]), writer, on_event)
            steps = evaluation.arms[unit.arm].attack.steps
            on_event(Event(unit, steps, steps, group.rows))
    finally:
        torch.set_num_threads(threads)
        writer.close()


def _work(evaluation: Evaluation, unit: Unit, keeper: Keeper, writer: Writer, on_event: OnEvent) -> Group:
    """Attack and score a unit, from its saved state on if there is one. Its state is saved if the run is stopped."""
    begun = _begun(evaluation, unit, keeper.snapshots)

    def on_step(step: int, steps: int, point: Point) -> None:
        on_event(Event(unit, step, steps, point=point))

    try:
        group = evaluation.run(unit, on_step, begun, keeper)
        writer.write(group)
    except (KeyboardInterrupt, SystemExit):  # launchers of schedulers have handlers of their own, which exit
        with undisturbed():
            keeper.save()
        raise
    keeper.snapshots.drop(unit)
    return group


def _begun(evaluation: Evaluation, unit: Unit, snapshots: Snapshots) -> Snapshot | None:
    try:
        saved = snapshots.read(unit)
        return None if saved is None else evaluation.restored(unit, saved)
    except ValueError as error:
        console.print(unused(snapshots.path(unit), error))
        return None
