"""What bench.py measures with: seconds in turn, peak memory in processes of their own, public networks at full
size with random weights.
"""

import ctypes
import dataclasses
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dp.defense.defended import Defended
from dp.evaluation.evaluate import Evaluation
from dp.rng import Streams
from dp.runs import compose
from dp.runs.build import build
from dp.subset import Subset


def in_turn(turns: int, *functions: Callable[[], object], warm: bool = True) -> list[float]:
    """Median seconds of each function, called A B A B ...; the first turn warms up and does not count, unless `warm` is
    false: functions of many long network calls need none.
    """
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(turns + warm):
        for spent, function in zip(times, functions, strict=True):
            began = _clock()
            function()
            if turn >= warm:
                spent.append(_clock() - began)
    return [statistics.median(t) for t in times]


def _clock() -> float:
    """Seconds of this process: what others take of the same cores does not count. On a GPU wall time, all work done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def attacked(evaluation: Evaluation) -> tuple[Defended, Subset, Streams]:
    """The attacked defense, all images on its device, and streams for them."""
    ids, x, y = evaluation.subset
    subset = Subset(ids, x.to(evaluation.device), y.to(evaluation.device))
    return evaluation.arms["defended"].attacked, subset, Streams(ids, 0, "bench")


def gradient(evaluation: Evaluation, model: Defended | None = None, samples: int | None = None) -> Callable[[], object]:
    """One attack gradient of all images. `samples`: as many as one call takes, unless given."""
    own, subset, rng = attacked(evaluation)
    model = model or own
    samples = samples or own.draws_per_call
    return lambda: model.loss_gradient(subset.x, subset.y, rng, samples)


def iteration(evaluation: Evaluation, **changes: Any) -> Callable[[], object]:
    """One whole step of the configured attack on all images, a call of the defense for all samples; `changes` of it."""
    model, subset, rng = attacked(evaluation)
    attack: Any = evaluation.arms["defended"].attack
    attack = dataclasses.replace(attack, **{"eot": model.draws_per_call, "random_start": False, **changes})
    state = attack.start(model, subset.x, subset.y, evaluation.threat, rng)
    return lambda: attack.step(model, state, subset.x, subset.y, evaluation.threat, rng)


def gradient_of(config: dict) -> Callable[[], object]:
    """The same of what `config` builds: for a process of its own."""
    return gradient(build(config))


def floor(evaluation: Evaluation, nfe: int, memory_format: torch.memory_format) -> Callable[[], object]:
    """The bare network calls that one attack gradient cannot do without, forward and backward: `nfe` of the denoiser,
    one of the classifier, on tensors of the same shape. The networks are `evaluation`'s own: put them in that format.
    """
    model, subset, _ = attacked(evaluation)
    z = subset.x.repeat(model.draws_per_call, 1, 1, 1).to(memory_format=memory_format)
    label = torch.zeros(1, device=z.device)
    assert model.denoiser is not None
    nets = [model.denoiser.net] * nfe + [model.classifier.net]

    def calls() -> None:
        for net in nets:
            leaf = z.clone().requires_grad_()
            out: Tensor = net(leaf) if net is model.classifier.net else net(leaf, label)
            torch.autograd.grad(out.sum(), leaf)

    return calls


def in_format(evaluation: Evaluation, memory_format: torch.memory_format) -> Evaluation:
    """The same evaluation, its networks in that memory format."""
    model = evaluation.arms["defended"].attacked
    for module in (model.denoiser, model.classifier):
        assert module is not None
        module.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    return evaluation


def random_config(*overrides: str, images: int) -> dict:
    """CIFAR-10's configuration with networks of random weights, as their yaml files name them, and random images: it
    needs no file.
    """
    config = compose.composed("dataset=cifar10", f"protocol.images={images}", *overrides)
    for group in ("denoiser", "classifier"):
        config[group]["net"] = {k: v for k, v in config[group]["net"]["net"].items() if k != "_partial_"}
    config["dataset"]["loader"] = {"_target_": "bench_tools.random_images", "images": images}
    config["plugins"]["modules"].append("bench_tools")
    return config


def random_images(images: int) -> Subset:
    """CIFAR-10 in shape alone."""
    x = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Subset(torch.arange(images), x, torch.arange(images) % 10)


def resident() -> tuple[float, float]:
    """Megabytes of this process in memory, mapped files included: now and at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: float(line.split()[1]) / 1e3 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return found["VmRSS"], found["VmHWM"]


def in_process(function: Callable[..., object], *args: object) -> Any:
    """What function(*args) returns, run in a process of its own with one thread."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.get_context("spawn").Process(target=_send, args=(sender, function, args))
    worker.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        worker.join()


def _send(sender: Connection, function: Callable[..., object], args: tuple) -> None:
    torch.set_num_threads(1)
    sender.send(function(*args))


def peak(make: Callable[..., Callable[[], object]], *args: object) -> float:
    """Megabytes that `make(*args)()` needs at most, in a process of its own, beyond what is there once it is made: what
    grows with images, samples and steps. On a GPU, of the GPU's memory.
    """
    return in_process(_peak, make, args)


def _peak(make: Callable[..., Callable[[], object]], args: tuple) -> float:
    function = make(*args)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    ctypes.CDLL(None).malloc_trim(0)  # what building freed goes back, or the function would have it for nothing
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    before = resident()[0]
    function()
    return resident()[1] - before
