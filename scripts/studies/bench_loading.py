"""The mode bench.py --loading: memory and time to load weights in the layout of the public 256x256 checkpoint."""

import os
import tempfile
import time
from pathlib import Path

import torch
from bench_tools import in_process, resident
from rich import box
from rich.console import Console
from rich.table import Table

from dp.runs import compose


def fake_weights(folder: Path) -> Path:
    """Write a file in the layout of the public 256x256 checkpoint with random numbers, and return its path."""
    make = compose.make(compose.composed("dataset=imagenet")["denoiser"]["net"]["net"])
    with torch.device("meta"):
        names = make().state_dict()
    path = folder / "256x256_diffusion_uncond.pt"
    torch.save({name: torch.randn(value.shape) for name, value in names.items()}, path)
    return path


def loaded(way: str, folder: str) -> tuple[float, float]:
    """The megabytes and seconds to load a network in channels_last and read every weight of it.

    `way`: `ours`, or `usual`, which builds the network, reads the file and copies the weights.
    """
    os.environ["DP_CACHE"] = folder
    node = compose.composed("dataset=imagenet", "denoiser.net.sha256=null")["denoiser"]["net"]
    before, began = resident()[0], time.perf_counter()
    if way == "ours":
        net = compose.make(node)
    else:
        net = compose.make(node["net"])()
        net.load_state_dict(torch.load(Path(folder) / node["file"], weights_only=True))
    net = net.to(memory_format=torch.channels_last)
    for parameter in net.parameters():
        parameter.sum()
    return resident()[1] - before, time.perf_counter() - began


def loading(console: Console) -> None:
    """Print the peak memory and time to load the 256x256 layout, for our way and the usual way."""
    table = Table("loading 2.2 GB", "peak MB", "peak - file, in copies", "seconds", box=box.SIMPLE_HEAD)
    with tempfile.TemporaryDirectory() as folder:
        size = fake_weights(Path(folder)).stat().st_size / 1e6
        for way in ("ours", "usual", "ours", "usual"):
            most, seconds = in_process(loaded, way, folder)
            text = {"ours": "mapped, hash checked", "usual": "build, read, copy, no hash"}[way]
            table.add_row(text, f"{most:.0f}", f"{(most - size) / size:.2f}", f"{seconds:.1f}")
    console.print(table)
