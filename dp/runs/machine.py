"""What a configuration needs of this machine: a device, processes, a share of the images."""

import os
from collections.abc import Sequence

import torch

LOCAL = "dp.runs.engines.local.Local"  # the engine that works on this machine alone


def gpus() -> list[str]:
    """The names of the visible GPUs."""
    return [f"cuda:{k}" for k in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def devices_of(config: dict) -> list[str]:
    """The devices that a run may use on this machine: `auto` and `cuda` are all visible GPUs, else it is one device.

    Without a GPU `auto` is the CPU. Raises ValueError for an unknown device, and for a GPU that is not there.
    """
    device, there = str(config["device"]), gpus()
    if device not in ("auto", "cpu", *there) and not (device == "cuda" and there):
        raise ValueError(f"need device auto, cpu or, if there is one, cuda, got device={device}")
    return [device] if device not in ("auto", "cuda") else there or ["cpu"]


def device_of(config: dict) -> str:
    """The first of the devices of a run, on which a single process works. Raises ValueError as `devices_of` does."""
    return devices_of(config)[0]


def free_bytes(device: str) -> float:
    """The free memory of a device, in bytes."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def total_bytes(device: str) -> float:
    """The memory of a device, in bytes, whatever of it is free."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def workers_of(config: dict) -> int:
    """The number of worker processes on this machine. `auto` means one per GPU, or else one per core.

    Raises ValueError for other text and for numbers below 1.
    """
    if config["workers"] != "auto":
        whole = isinstance(config["workers"], int) and not isinstance(config["workers"], bool)
        if not whole or config["workers"] < 1:
            raise ValueError(f"need workers auto or >= 1, got workers={config['workers']}")
        return config["workers"]
    if (devices := devices_of(config)) != ["cpu"]:
        return len(devices)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stays_here(config: dict) -> bool:
    """True if the engine works on this machine alone, so that `workers_of` are all that it has."""
    return config["engine"]["_target_"] == LOCAL


def places_of(config: dict) -> list[str]:
    """The device of each worker process: the devices of the run in turn."""
    devices = devices_of(config)
    return [devices[k % len(devices)] for k in range(workers_of(config))]


def at_place(config: dict, places: Sequence[str], k: int) -> dict:
    """The configuration of the k-th of several worker processes. Its `workers` are those that share its device."""
    return {**config, "device": places[k], "workers": places.count(places[k])}


def sharing(config: dict) -> int:
    """How many worker processes share a device at most."""
    return -(-workers_of(config) // len(devices_of(config)))


def shard_of(config: dict) -> tuple[int, int]:
    """The shard `k/n` as (k, n). Raises ValueError unless 1 <= k <= n."""
    part, _, parts = str(config["shard"]).partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"need shard k/n with 1 <= k <= n, got shard={config['shard']}")
    return int(part), int(parts)
