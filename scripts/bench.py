"""Speed and memory as ratios, each pair measured side by side, in turn, in this one run; medians over the turns."""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="counted turns of each pair (default 5)")
    parser.add_argument("overrides", nargs="*", help="configuration, as for run.py (default: digits, hetero)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = ["protocol.images=32", *args.overrides]
    table = Table("measured", "ratio", "seconds", box=box.SIMPLE_HEAD, title="one thread, 32 lanes x draws per call")

    def add(name: str, times: list[float]) -> None:
        table.add_row(name, f"{times[0] / times[1]:.2f}", f"{times[0]:.3f} / {times[1]:.3f}")

    store, recompute = (run.build(run.composed(*base, f"memory={m}")) for m in ("store", "recompute"))
    add("recompute / store, one attack gradient", in_turn(args.turns, gradient(recompute), gradient(store)))
    nfe = run.dry_nfe(store.arms["defended"].attacked, store.subset.select(slice(0, 1)))
    add(f"attack gradient / its {nfe} + 1 bare network calls", in_turn(args.turns, gradient(store), floor(store, nfe)))
    plain = run.build(run.composed(*base, "memory=store"))
    for module in (plain.arms["defended"].attacked.denoiser, plain.arms["defended"].attacked.classifier):
        assert module is not None
        module.to(memory_format=torch.contiguous_format)
    add("channels_last / contiguous, one attack gradient", in_turn(args.turns, gradient(store), gradient(plain)))
    serial = store.arms["defended"].attacked
    serial = Defended(serial.purifier, serial.denoiser, serial.classifier, draws_per_call=1)
    draws, subset = store.arms["defended"].attacked.draws_per_call, store.subset
    rng = Streams(subset.ids, 0, "bench")
    one_by_one = functools.partial(serial.loss_gradient, subset.x, subset.y, rng, draws)
    add("draws in one call / draws one by one", in_turn(args.turns, gradient(store), one_by_one))

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
