"""What a configuration asks of this machine: a device, processes, a share of the images."""

import os
import re

import torch


def device_of(config: dict) -> str:
    """`auto` is CUDA where there is one."""
    device, there = str(config["device"]), torch.cuda.is_available()
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) or (device.startswith("cuda") and not there):
        raise ValueError(f"need device auto, cpu or, where there is one, cuda, got device={device}")
    return ("cuda" if there else "cpu") if device == "auto" else device


def free_bytes(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def workers_of(config: dict) -> int:
    """Worker processes: as told, or one per core on a CPU and one on a GPU."""
    if config["workers"] != "auto":
        if not isinstance(config["workers"], int) or config["workers"] < 1:
            raise ValueError(f"need workers auto or >= 1, got workers={config['workers']}")
        return config["workers"]
    if device_of(config) != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shard_of(config: dict) -> tuple[int, int]:
    """k/n -> (k, n)."""
    part, _, parts = str(config["shard"]).partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"need shard k/n with 1 <= k <= n, got shard={config['shard']}")
    return int(part), int(parts)
