"""Tools of bench.py: times in turn, peak memory in separate processes, public networks of full size, random weights."""

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
from dp.rng import Streams, cat_draws
from dp.runs import compose
from dp.runs.build import build
from dp.subset import Subset

M_MMAP_THRESHOLD = -3  # of mallopt: larger tensors get pages of their own, so that holes in the heap are not measured


def in_turn(turns: int, *functions: Callable[[], object], warm: bool = True) -> list[float]:
    """The median seconds of each function, called in the order A B A B ...

    With `warm`, the first turn only warms up and does not count. Functions of many long network calls do not need it.
    """
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(turns + warm):
        for spent, function in zip(times, functions, strict=True):
            start_time = _clock()
            function()
            if turn >= warm:
                spent.append(_clock() - start_time)
    return [statistics.median(t) for t in times]


def _clock() -> float:
    """CPU seconds of this process, which other processes do not change. On a GPU, wall time after all its work."""
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
    """A function that takes one attack gradient of all images. `samples`: by default as many as one call has."""
    default, subset, rng = attacked(evaluation)
    model = model or default
    samples = samples or default.draws_per_call
    return lambda: model.loss_gradient(subset.x, subset.y, rng, samples)


def iteration(evaluation: Evaluation, **changes: Any) -> Callable[[], object]:
    """A function that makes one step of the attack on all images, with one call for all samples.

    `changes`: other hyperparameters of the attack.
    """
    model, subset, rng = attacked(evaluation)
    attack: Any = evaluation.arms["defended"].attack
    attack = dataclasses.replace(attack, **{"eot": model.draws_per_call, "random_start": False, **changes})
    state = attack.start(model, subset.x, subset.y, evaluation.threat, rng)
    return lambda: attack.step(model, state, subset.x, subset.y, evaluation.threat, rng)


def gradient_of(config: dict) -> Callable[[], object]:
    """`gradient` for a plain configuration, for use in another process."""
    return gradient(build(config))


def gradient_with_all_kept(config: dict) -> Callable[[], object]:
    """`gradient_of` networks that keep all that autograd keeps by default."""
    return gradient(all_kept(build(config)))


def all_kept(evaluation: Evaluation) -> Evaluation:
    """The same evaluation with weights that need a gradient: its networks keep all that autograd keeps by default. The
    gradient of the weights itself is not computed, because an attack asks for that of the images alone.
    """
    evaluation.arms["defended"].attacked.requires_grad_(True)
    return evaluation


def floor(evaluation: Evaluation, nfe: int, memory_format: torch.memory_format) -> Callable[[], object]:
    """A function of the bare network calls in one attack gradient, forward and backward.

    There are `nfe` calls of the denoiser and one of the classifier, on tensors of the same shape. The networks are
    those of `evaluation` and must be in `memory_format`.
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


def noise(evaluation: Evaluation, draws: int) -> Callable[[], object]:
    """A function that draws noise so many times, each time for all images and samples of one call."""
    model, subset, rng = attacked(evaluation)
    samples = range(model.draws_per_call)
    z = subset.x.repeat(len(samples), 1, 1, 1)

    def draw() -> None:
        streams = cat_draws(rng, samples)
        for _ in range(draws):
            streams.randn_like(z)

    return draw


def in_format(evaluation: Evaluation, memory_format: torch.memory_format) -> Evaluation:
    """The same evaluation, after its networks are moved to a memory format."""
    model = evaluation.arms["defended"].attacked
    for module in (model.denoiser, model.classifier):
        assert module is not None
        module.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    return evaluation


def random_config(*overrides: str, images: int) -> dict:
    """A configuration of CIFAR-10 that needs no file: the networks have random weights, and the images are random."""
    config = compose.composed("dataset=cifar10", "rng=1", f"protocol.images={images}", *overrides)
    for group in ("denoiser", "classifier"):
        config[group]["net"] = {k: v for k, v in config[group]["net"]["net"].items() if k != "_partial_"}
    config["dataset"]["loader"] = {"_target_": "bench_tools.random_images", "images": images}
    config["plugins"]["modules"].append("bench_tools")
    return config


def random_images(images: int) -> Subset:
    """Random images in the shape of CIFAR-10."""
    x = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Subset(torch.arange(images), x, torch.arange(images) % 10)


def resident() -> tuple[float, float]:
    """The memory of this process in megabytes, with mapped files: now, and the largest so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: float(line.split()[1]) / 1e3 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return sizes["VmRSS"], sizes["VmHWM"]


def in_process(function: Callable[..., object], *args: object) -> Any:
    """The result of function(*args), run in a separate process with one thread."""
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
    """The peak memory of `make(*args)()` in megabytes, in a separate process, beyond the memory after `make(*args)`.

    This is the part that grows with images, samples and steps. On a GPU it is the GPU's memory.
    """
    return in_process(_peak, make, args)


def _peak(make: Callable[..., Callable[[], object]], args: tuple) -> float:
    quiet_heap()
    function = make(*args)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    before = new_peak()
    function()
    return resident()[1] - before


def quiet_heap() -> None:
    """Give large tensors pages of their own, before the first of them."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)


def new_peak() -> float:
    """Forget the peak of this process's memory so far, and return its memory now in megabytes."""
    ctypes.CDLL(None).malloc_trim(0)  # returns freed memory to the system, so that the call below is charged for it
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    return resident()[0]
