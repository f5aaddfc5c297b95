"""What a configuration needs of this machine: a device, processes, a share of the images."""

import os
import re

import torch


def device_of(config: dict) -> str:
    """The name of the device. `auto` becomes `cuda` if there is one, else `cpu`.

    Raises ValueError for an unknown device, and for `cuda` on a machine without one.
    """
    device, has_cuda = str(config["device"]), torch.cuda.is_available()
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) or (device.startswith("cuda") and not has_cuda):
        raise ValueError(f"need device auto, cpu or, if there is one, cuda, got device={device}")
    return ("cuda" if has_cuda else "cpu") if device == "auto" else device


def free_bytes(device: str) -> float:
    """The free memory of a device, in bytes."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def workers_of(config: dict) -> int:
    """The number of worker processes. `auto` means one per core on a CPU, and one on a GPU.

    Raises ValueError for other text and for numbers below 1.
    """
    if config["workers"] != "auto":
        whole = isinstance(config["workers"], int) and not isinstance(config["workers"], bool)
        if not whole or config["workers"] < 1:
            raise ValueError(f"need workers auto or >= 1, got workers={config['workers']}")
        return config["workers"]
    if device_of(config) != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shard_of(config: dict) -> tuple[int, int]:
    """The shard `k/n` as (k, n). Raises ValueError unless 1 <= k <= n."""
    part, _, parts = str(config["shard"]).partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"need shard k/n with 1 <= k <= n, got shard={config['shard']}")
    return int(part), int(parts)
