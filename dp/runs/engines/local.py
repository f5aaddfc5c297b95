"""The engine `local`: processes of this machine, one for each visible GPU, or one for each core."""

from dataclasses import dataclass

import torch

from dp.evaluation.evaluate import Evaluation
from dp.runs.engines.interface import OnEvent, Work
from dp.runs.machine import devices_of, places_of, workers_of
from dp.runs.workers import run_units


@dataclass(frozen=True)
class Local:
    """One queue of units for all worker processes of this machine."""

    def workers(self, config: dict) -> int:
        """See `machine.workers_of`."""
        return workers_of(config)

    def run(self, work: Work, evaluation: Evaluation, on_event: OnEvent) -> None:
        """One worker is this process. If there are several on GPUs, this process frees its own networks first."""
        places = places_of(work.config)[: len(work.units)]
        if len(places) > 1 and devices_of(work.config) != ["cpu"]:
            evaluation.release()
            torch.cuda.empty_cache()  # the workers measure what is free; without a GPU this does nothing
        run_units(work, evaluation, places, on_event)
