"""The engine `ray`: the units of one run on all machines of a Ray cluster, or in processes of this machine."""

import logging
import os
import signal
from dataclasses import dataclass
from typing import Any

from dp.evaluation.evaluate import Evaluation
from dp.runs.engines.interface import OnEvent, Work
from dp.runs.engines.ray_driver import Driver, Kind
from dp.runs.machine import gpus, workers_of
from dp.runs.signals import STOPS


@dataclass(frozen=True)
class Ray:
    """A worker for each free GPU of the cluster or, on a cluster without one and with device=cpu, for each free core.

    `address`: `local` starts Ray on this machine; `auto` joins the cluster that runs here; or `HOST:PORT` of a cluster.
    """

    address: str = "local"

    def workers(self, config: dict) -> int:
        """How many workers the cluster has room for now. Connects to it."""
        room = int(self._connected(config).cluster_resources().get(_kind(config).resource, 0))
        return max(1, min(room, workers_of(config)) if config["workers"] != "auto" else room)

    def run(self, work: Work, evaluation: Evaluation, on_event: OnEvent) -> None:
        """This process hands out the units and writes what comes back. It frees its own networks first."""
        self._connected(work.config)
        steps = {name: arm.attack.steps for name, arm in evaluation.arms.items()}
        evaluation.release()
        Driver(work, _kind(work.config), steps, on_event).run()

    def _connected(self, config: dict) -> Any:
        """Ray, connected. Raises ValueError if it is not installed, and ConnectionError if there is no such cluster."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray reports nothing about its use
        try:
            import ray  # imported here: it is optional, and takes a second
        except ModuleNotFoundError:
            raise ValueError("need Ray for engine=ray, got none: pip install 'dp-purification[ray]'") from None
        if ray.is_initialized():
            return ray
        own: dict[str, Any] = {"include_dashboard": False}
        if config["workers"] != "auto" and not gpus():
            own["num_cpus"] = workers_of(config)
        handlers = [signal.getsignal(each) for each in STOPS]
        ray.init(
            self.address, log_to_driver=False, logging_level=logging.ERROR, **(own if self.address == "local" else {})
        )
        for each, handler in zip(STOPS, handlers, strict=True):  # Ray's own would end this process before it saves
            signal.signal(each, handler)
        return ray


def _kind(config: dict) -> Kind:
    """What kind of worker the run has on the connected cluster. Raises ValueError for a device of one machine."""
    import ray

    if config["device"] not in ("auto", "cpu", "cuda"):
        raise ValueError(f"need device auto, cpu or cuda with engine=ray, got device={config['device']}")
    if config["device"] != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1:
        return Kind("GPU", {"num_gpus": 1}, {"device": "cuda", "workers": 1})
    if config["device"] == "cuda":
        raise ValueError("need a GPU in the Ray cluster for device=cuda, got none: wait for one, or set device=cpu")
    return Kind("CPU", {"num_cpus": 1}, {"device": "cpu", "workers": "auto"})
