"""Speed and memory as ratios, each pair measured side by side, in turn, in this one run; medians over the turns."""

import argparse
import functools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from hydra.utils import instantiate
from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # run.py composes the configuration

import run
from dp.defense import Defended, activation_bytes
from dp.evaluate import Evaluation
from dp.purifiers import diffpure
from dp.rng import Streams


def in_turn(turns: int, *functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function, called A B A B ... after one warm-up each."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(turns + 1):
        for spent, function in zip(times, functions, strict=True):
            began = time.perf_counter()
            function()
            if turn:
                spent.append(time.perf_counter() - began)
    return [statistics.median(t) for t in times]


def gradient(evaluation: Evaluation, model: Defended | None = None) -> Callable[[], object]:
    """One attack gradient of all lanes and draws."""
    model, subset = model or evaluation.arms["defended"].attacked, evaluation.subset
    rng = Streams(subset.ids, 0, "bench")
    return lambda: model.loss_gradient(subset.x, subset.y, rng, model.draws_per_call)


def floor(evaluation: Evaluation, nfe: int) -> Callable[[], object]:
    """The bare network calls that one attack gradient cannot do without: nfe of the denoiser, one of the classifier."""
    model, subset = evaluation.arms["defended"].attacked, evaluation.subset
    z = subset.x.repeat(model.draws_per_call, 1, 1, 1).to(memory_format=torch.channels_last)
    label = torch.zeros(1)
    assert model.denoiser is not None
    nets = [model.denoiser.net] * nfe + [model.classifier.net]

    def calls() -> None:
        for net in nets:
            leaf = z.clone().requires_grad_()
            out = net(leaf) if net is model.classifier.net else net(leaf, label)
            torch.autograd.grad(out.sum(), leaf)

    return calls


def verdicts(evaluation: Evaluation) -> dict:
    rows = [row for unit in evaluation.plan() for row in evaluation.run(unit).rows]
    return {(row["arm"], row["seed"], row["id"]): (row["clean"], row["adv"]) for row in rows}


def fake_weights(folder: Path) -> Path:
    """A file in the layout of the public 256x256 checkpoint, with random numbers."""
    make = instantiate(run.composed("dataset=imagenet")["denoiser"]["net"]["net"], _convert_="all")
    with torch.device("meta"):
        names = make().state_dict()
    path = folder / "256x256_diffusion_uncond.pt"
    torch.save({name: torch.randn(value.shape) for name, value in names.items()}, path)
    return path


def loaded(way: str, folder: str, sender: Connection) -> None:
    """In a process of its own: megabytes and seconds from nothing to a network in channels_last whose every weight has
    been read. `way`: `ours`, or `usual`, which builds the network, reads the file and copies it in.
    """
    os.environ["DP_CACHE"] = folder
    node = run.composed("dataset=imagenet", "denoiser.net.sha256=null")["denoiser"]["net"]
    before, began = resident()[0], time.perf_counter()
    if way == "ours":
        net = instantiate(node, _convert_="all")
    else:
        net = instantiate(node["net"], _convert_="all")()
        net.load_state_dict(torch.load(Path(folder) / node["file"], weights_only=True))
    net = net.to(memory_format=torch.channels_last)
    for parameter in net.parameters():
        parameter.sum()
    sender.send((resident()[1] - before, time.perf_counter() - began))


def resident() -> tuple[float, float]:
    """Megabytes of this process in memory, mapped files included: now and at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: float(line.split()[1]) / 1e3 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return found["VmRSS"], found["VmHWM"]


def loading(console: Console) -> None:
    """Peak memory and time to load the 256x256 layout, against the file's size and the usual way."""
    table = Table("loading 2.2 GB", "peak MB", "peak - file, in copies", "seconds", box=box.SIMPLE_HEAD)
    with tempfile.TemporaryDirectory() as folder:
        size = fake_weights(Path(folder)).stat().st_size / 1e6
        for way in ("ours", "usual", "ours", "usual"):
            receiver, sender = multiprocessing.Pipe(duplex=False)
            worker = multiprocessing.get_context("spawn").Process(target=loaded, args=(way, folder, sender))
            worker.start()
            peak, seconds = receiver.recv()
            worker.join()
            said = {"ours": "mapped, hash checked", "usual": "build, read, copy, no hash"}[way]
            table.add_row(said, f"{peak:.0f}", f"{(peak - size) / size:.2f}", f"{seconds:.1f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loading", action="store_true", help="instead: memory and time to load 2.2 GB of weights")
    parser.add_argument("--turns", type=int, default=5, help="counted turns of each pair (default 5)")
    parser.add_argument("overrides", nargs="*", help="configuration, as for run.py (default: digits, hetero)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.loading:
        loading(Console(width=110))
    else:
        speed(args.turns, ["protocol.images=32", *args.overrides])


def speed(turns: int, base: list[str]) -> None:
    """Time and memory of attack gradients, on the networks of the configuration `base`."""
    table = Table("measured", "ratio", "seconds", box=box.SIMPLE_HEAD, title="one thread, 32 lanes x draws per call")

    def add(name: str, times: list[float]) -> None:
        table.add_row(name, f"{times[0] / times[1]:.2f}", f"{times[0]:.3f} / {times[1]:.3f}")

    store, recompute = (run.build(run.composed(*base, f"memory={m}")) for m in ("store", "recompute"))
    add("recompute / store, one attack gradient", in_turn(turns, gradient(recompute), gradient(store)))
    nfe = run.dry_nfe(store.arms["defended"].attacked, store.subset.select(slice(0, 1)))
    add(f"attack gradient / its {nfe} + 1 bare network calls", in_turn(turns, gradient(store), floor(store, nfe)))
    plain = run.build(run.composed(*base, "memory=store"))
    for module in (plain.arms["defended"].attacked.denoiser, plain.arms["defended"].attacked.classifier):
        assert module is not None
        module.to(memory_format=torch.contiguous_format)
    add("channels_last / contiguous, one attack gradient", in_turn(turns, gradient(store), gradient(plain)))
    serial = store.arms["defended"].attacked
    serial = Defended(serial.purifier, serial.denoiser, serial.classifier, draws_per_call=1)
    draws, subset = store.arms["defended"].attacked.draws_per_call, store.subset
    rng = Streams(subset.ids, 0, "bench")
    one_by_one = functools.partial(serial.loss_gradient, subset.x, subset.y, rng, draws)
    add("draws in one call / draws one by one", in_turn(turns, gradient(store), one_by_one))

    def bytes_of(evaluation: Evaluation, steps: int) -> int:
        model = evaluation.arms["defended"].attacked
        purify = functools.partial(diffpure.purify, t=0.2, steps=steps, eta=0.0)
        one = evaluation.subset.select(slice(0, 1))
        return activation_bytes(Defended(purify, model.denoiser, model.classifier), one.x, Streams(one.ids, 0, "b"))

    for name, evaluation in (("store", store), ("recompute", recompute)):
        ten, hundred = bytes_of(evaluation, 10), bytes_of(evaluation, 100)
        figures = f"{hundred / 1e6:.1f} / {ten / 1e6:.1f} MB an image"
        table.add_row(f"stored for backward, 100 steps / 10 steps, {name}", f"{hundred / ten:.2f}", figures)
    Console(width=110).print(table)
    tiny = [*base, "attack.iterations=5", "protocol.seeds=[1]", "protocol.votes=4"]
    by_lanes = {lanes: verdicts(run.build(run.composed(*tiny, f"dataset.lanes={lanes}"))) for lanes in (32, 16, 8)}
    for lanes in (16, 8):
        differ = sum(by_lanes[32][key] != by_lanes[lanes][key] for key in by_lanes[32])
        print(f"lanes {lanes} against 32: {differ} of {len(by_lanes[32])} rows have a draw with another verdict")


if __name__ == "__main__":
    main()
