"""The process that mirrors a run: python -m dp.output.mirror WRITER PATIENCE. `dp/output/tracking.py` starts it.

It reads lines of JSON: `begin`, then `log` lines, then perhaps `finish`. If the run ends before that, it counts as
stopped. What it has to say of trouble it prints in one line at its end.
"""

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

WRITERS = {"wandb": "dp.output.to_wandb:ToWandB", "tensorboard": "dp.output.to_tensorboard:ToTensorBoard"}


class Writer(Protocol):
    """What talks to a library. It may raise any error, or never return."""

    def log(self, figures: dict[str, float]) -> None:
        """Take figures of a run that is under way."""
        ...

    def finish(self, content: dict[str, Any]) -> None:
        """Take the content of a finished run (see `dp.output.tracked`), and end."""
        ...

    def stop(self) -> None:
        """End, because the run was stopped."""
        ...


def mirror(make: Callable[..., Writer], patience: float, say: Callable[[str], None]) -> None:
    """Hand the lines of the standard input to a writer. `say`: notes trouble for people."""
    messages: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(messages, patience), daemon=True).start()
    first = messages.get()
    assert first is not None, "the run begins with a line"
    writer, finished = make(say=say, **first["begin"]), False
    while (message := messages.get()) is not None:
        if "log" in message:
            writer.log(message["log"])
        else:
            writer.finish(message["finish"])
            finished = True
    if not finished:
        writer.stop()


def _listen(messages: SimpleQueue[dict[str, Any] | None], patience: float) -> None:
    """Read the standard input, also while a writer is busy. For a stopped run the input ends without `finish`, and
    this process ends after `patience` seconds, whatever its writer does: nobody waits for it any more.
    """
    finished = False
    for line in sys.stdin:
        messages.put(message := json.loads(line))
        finished = finished or "finish" in message
    messages.put(None)
    if not finished:
        threading.Timer(patience, os._exit, [1]).start()


def main() -> None:
    """The process. It leaves without the exit handlers of libraries, which may wait for a network."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries and their processes print goes nowhere
    troubles: list[str] = []
    module, _, name = WRITERS[sys.argv[1]].partition(":")
    try:
        mirror(getattr(importlib.import_module(module), name), float(sys.argv[2]), troubles.append)
    except BaseException as error:  # of a library; whatever it is, the run goes on without it
        troubles.append(f"failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
    answers.write("; ".join(troubles))
    answers.close()
    os._exit(1 if troubles else 0)


if __name__ == "__main__":
    main()
