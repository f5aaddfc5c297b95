"""Figure 8: seconds and peak memory of one attack gradient through hetero, over U, on the full-size EDM network."""

import gc
import sys
import time
from pathlib import Path

import bench_tools
import numpy as np

from dp.evaluation.dry import dry_nfe
from dp.runs.build import build

CELLS = (  # (resampling, memory, U): what is measured; the other U are extrapolated
    ("multi", "store", 1),
    ("single", "store", 1),
    ("single", "recompute", 1),
    ("multi", "recompute", 1),
    ("multi", "store", 5),
    ("single", "store", 20),
    ("multi", "recompute", 5),
)
STEPS = 10
WHAT = "one attack gradient through hetero: 10 steps, 8 of them resampled; EDM's network of full size at 32 x 32 and "
WHAT += "WRN-28-10, random weights, one image, one sample, float32, one thread; CPU time of the process"


def overrides(resampling: str, memory: str, jump: int) -> tuple[str, ...]:
    """The overrides of a cell: one image, one sample, the exact gradient."""
    return (
        "denoiser=edm_cifar10",
        "purifier=hetero",
        f"purifier.steps={STEPS}",
        f"purifier.resampling={resampling}",
        f"purifier.jump={jump}",
        "threat_model.grad=full",
        "dataset.lanes=1",
        "dataset.draws_per_call=1",
        f"memory={memory}",
    )


def _cell(config: dict) -> tuple[float, float, int]:
    """CPU seconds of one attack gradient, the memory that it adds at its peak (MB), and its network evaluations."""
    bench_tools.quiet_heap()
    evaluation = build(config)
    model, subset, _ = bench_tools.attacked(evaluation)
    nfe = dry_nfe(model, subset)
    function = bench_tools.gradient(evaluation, model)
    gc.collect()
    before = bench_tools.new_peak()
    begun = time.process_time()
    function()
    return time.process_time() - begun, bench_tools.resident()[1] - before, nfe


def measured(cells: tuple[tuple[str, str, int], ...] = CELLS) -> dict[str, np.ndarray]:
    """The arrays of the figure: one entry for each cell, each measured once in a process of its own."""
    rows = []
    for resampling, memory, jump in cells:
        config = bench_tools.random_config(*overrides(resampling, memory, jump), images=1)
        seconds, megabytes, nfe = bench_tools.in_process(_cell, config)
        rows.append((resampling, memory, jump, nfe, seconds, megabytes))
        print(*rows[-1], file=sys.stderr, flush=True)
    names = ("resampling", "memory", "jump", "nfe", "seconds", "megabytes")
    found = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
    return found | {"cpu": np.array(_cpu()), "about": np.array(WHAT)}


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
