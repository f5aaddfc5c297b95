"""Measure speed and memory as ratios. The two sides of a ratio are measured in turn, in one process with one thread.

Each figure is a median over the turns: of the process's CPU seconds on a CPU, of wall time on a GPU.

The ratios are written to results/tables/bench.csv. By default the networks are those of the embedded digits. Other
modes:
  --full      networks of CIFAR-10's full size (denoiser=edm_cifar10, wrn_28_10) with random weights
  --official  the released code's own attack loop (a checkout of GaozhengPei/Purification on PYTHONPATH), on small
              networks, or with --full on large ones
  --switches  one at a time: bf16, several samples in one call, on a GPU TF32, and torch.compile (on a GPU or with
              --compile)
  --refill    batch slots that are refilled when an image is broken
  --loading   memory and time to load weights
  --start     CPU seconds from the start of a command to its first iteration, against another checkout
"""

import argparse
import copy
import functools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import bench_tools
import official
import outputs
import torch
from bench_loading import loading
from bench_start import medians
from bench_table import Ratios, console
from bench_tools import attacked, floor, gradient, in_format, in_turn, iteration, peak

from dp.defense.defended import Defended
from dp.defense.memory import activation_bytes
from dp.evaluation.dry import dry_nfe
from dp.evaluation.evaluate import Evaluation
from dp.purifiers import diffpure
from dp.rng import Streams
from dp.runs import compose
from dp.runs.build import build
from dp.runs.errors import command

TABLE = Path(__file__).parents[2] / "results" / "tables" / "bench.csv"

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def costs(ratios: Ratios, turns: int, make: Callable[..., dict], full: bool) -> Evaluation:
    """Measure the time and memory of activation checkpointing and of the attack loop.

    The networks are those of make(overrides). The bounds are for networks of full size. Returns the evaluation with
    memory=store.
    """
    bounds = (1.36, 1.06, 1.3, 0.45, 0.02) if full else (None,) * 5
    store, recompute = (build(make(f"memory={m}")) for m in ("store", "recompute"))
    nfe = dry_nfe(store.arms["defended"].attacked, store.subset.select(slice(0, 1)))
    bare = [bench_tools.all_kept(in_format(copy.deepcopy(store), f)) for f in FORMATS.values()]
    once = in_turn(3, *(floor(e, 1, f) for e, f in zip(bare, FORMATS.values(), strict=True)))
    best = once.index(min(once))
    fastest = floor(bare[best], nfe, list(FORMATS.values())[best])
    draw = bench_tools.noise(store, nfe)
    again, stored, least, drawn = in_turn(turns, iteration(recompute), iteration(store), fastest, draw, warm=not full)
    ratios.add("recompute / store, one attack iteration", again, stored, bound=bounds[0])
    name = f"attack iteration / its {nfe} + 1 bare calls, {list(FORMATS)[best]}"
    ratios.add(name, stored, least, bound=bounds[1])
    ratios.add(f"noise for each of {nfe} calls / attack iteration, stored", drawn, stored, bound=bounds[4])
    hundred, ten = (peak(bench_tools.gradient_of, make("memory=recompute", f"purifier.steps={n}")) for n in (100, 10))
    ratios.add("peak memory, 100 steps / 10 steps, recompute", hundred, ten, bound=bounds[2], unit="MB")
    kept = peak(bench_tools.gradient_of, make("memory=store"))
    ratios.add("peak memory, 10 steps, recompute / store", ten, kept, unit="MB")
    everything = peak(bench_tools.gradient_with_all_kept, make("memory=store"))
    ratios.add("peak memory, 10 steps, store / all that autograd keeps", kept, everything, bound=bounds[3], unit="MB")
    return store


def full_size(turns: int, images: int, overrides: list[str]) -> Ratios:
    """Measure `costs` on the public CIFAR-10 networks with random weights, one sample per call."""
    ratios = Ratios(f"edm_cifar10 and wrn_28_10, random weights, {images} images x 1 sample, 10 steps, one thread")
    base = ("denoiser=edm_cifar10", f"dataset.lanes={images}", "dataset.draws_per_call=1", *_diffpure(overrides))
    costs(ratios, turns, lambda *more: bench_tools.random_config(*base, *more, images=images), full=True)
    return ratios


def _diffpure(overrides: list[str]) -> list[str]:
    """The overrides of uniform purification with ten steps, unless they name another purifier."""
    named = any(o.startswith("purifier=") for o in overrides)
    return overrides if named else ["purifier=diffpure", "purifier.steps=10", "threat_model.grad=full", *overrides]


def embedded(turns: int, overrides: list[str]) -> Ratios:
    """Measure time and memory on the digits, or on another configuration whose files are in the cache."""
    base = ["protocol.images=32", *_diffpure(overrides)]
    ratios = Ratios("one thread, 32 images x samples per call")
    store = costs(ratios, turns, lambda *more: compose.composed(*base, *more), full=False)
    plain = in_format(build(compose.composed(*base, "memory=store")), torch.contiguous_format)
    ratios.add("channels_last / contiguous, one attack gradient", *in_turn(turns, gradient(store), gradient(plain)))
    serial, samples = _one_by_one(store)
    pair = in_turn(turns, gradient(store), gradient(store, serial, samples))
    ratios.add("samples in one call / samples one by one", *pair)
    for memory in ("store", "recompute"):
        evaluation = build(compose.composed(*base, f"memory={memory}"))
        ten, hundred = (_stored(evaluation, steps) / 1e6 for steps in (10, 100))
        ratios.add(f"stored for backward an image, 100 steps / 10 steps, {memory}", hundred, ten, unit="MB")
    _lanes([*base, "attack.iterations=5", "protocol.seeds=[1]", "protocol.votes=4"])
    return ratios


def _one_by_one(evaluation: Evaluation) -> tuple[Defended, int]:
    """A copy of the attacked defense with one sample per call, and the number of samples per call before."""
    model = evaluation.arms["defended"].attacked
    return Defended(model.purifier, model.denoiser, model.classifier, draws_per_call=1), model.draws_per_call


def _stored(evaluation: Evaluation, steps: int) -> int:
    model = evaluation.arms["defended"].attacked
    purify = functools.partial(diffpure.purify, t=0.2, steps=steps, eta=0.0)
    one = evaluation.subset.select(slice(0, 1))
    return activation_bytes(Defended(purify, model.denoiser, model.classifier), one.x, Streams(one.ids, 0, "b"))


def _lanes(small: list[str]) -> None:
    """Print how many predictions change with the number of batch slots, which changes the rounding."""
    by_lanes = {lanes: predictions(build(compose.composed(*small, f"dataset.lanes={lanes}"))) for lanes in (32, 16, 8)}
    for lanes in (16, 8):
        differ = sum(by_lanes[32][key] != by_lanes[lanes][key] for key in by_lanes[32])
        print(f"lanes {lanes} against 32: {differ} of {len(by_lanes[32])} rows have a sample with another prediction")


def predictions(evaluation: Evaluation) -> dict:
    """The classes of all samples, clean and attacked, by (arm, seed, id)."""
    rows = [row for unit in evaluation.plan() for row in evaluation.run(unit).rows]
    return {(row["arm"], row["seed"], row["id"]): (row["clean"], row["adv"]) for row in rows}


def against(turns: int, images: int, samples: int, full: bool, overrides: list[str]) -> Ratios:
    """Measure our attack iteration against the released code's, with the same images, networks, method and samples."""
    name = "DDPM++ and WRN-28-10" if full else "small networks"
    ratios = Ratios(f"against the released code: {name}, {images} images, {samples} samples per iteration, 10 steps")
    make = functools.partial(official.config, full, images)
    evaluation = build(make(1, "store", *overrides))
    packed = build(make(samples, "store", *overrides))
    config = make(1, "store", *overrides)
    released = {n: official.around(evaluation, config, samples, f) for n, f in FORMATS.items()}
    with tempfile.TemporaryDirectory() as folder:  # the released code writes a picture for every sample
        before = Path.cwd()
        os.chdir(folder)
        ours, pack, contiguous, last = in_turn(
            turns,
            iteration(evaluation, iterations=1, eot=samples),
            iteration(packed, iterations=1, eot=samples),
            released["contiguous"],
            released["channels_last"],
            warm=not full,
        )
        ratios.add("our iteration / the released code's", ours, contiguous, bound=1.0)
        ratios.add("our iteration / the released code's on channels_last networks", ours, last)
        ratios.add(f"our {samples} samples in one call / the released code's one by one", pack, contiguous)
        ratios.add(f"our {samples} samples in one call / ours one by one", pack, ours)
        del released, evaluation, packed
        least = peak(bench_tools.gradient_of, make(1, "recompute", *overrides))
        most = peak(official.loop, config, 1, FORMATS["contiguous"])
        ratios.add("peak memory, ours with recompute / the released code's", least, most, bound=0.5, unit="MB")
        stored = peak(bench_tools.gradient_of, make(1, "store", *overrides))
        ratios.add("peak memory, ours with store / the released code's", stored, most, unit="MB")
        os.chdir(before)
    return ratios


def switches(turns: int, images: int, samples: int, full: bool, compiled: bool, overrides: list[str]) -> Ratios:
    """Measure one attack gradient with each switch on, against float32, not compiled, one sample per call."""
    base = [f"dataset.lanes={images}", f"dataset.draws_per_call={samples}", "memory=store", *_diffpure(overrides)]

    def built(*more: str) -> Evaluation:
        if full:
            return build(bench_tools.random_config("denoiser=edm_cifar10", *base, *more, images=images))
        return build(compose.composed(f"protocol.images={images}", *base, *more))

    plain, low = built(), built("dtype=bfloat16")
    one, many = _one_by_one(plain)[0], attacked(plain)[0]
    ratios = Ratios(f"{images} images x {samples} samples, {plain.device}: switched on / float32, one sample per call")
    against = gradient(plain, one, samples)
    tried = {"bf16": gradient(low, _one_by_one(low)[0], samples), "packed samples": gradient(plain, many, samples)}
    if plain.device.startswith("cuda"):
        tried["TF32"] = _in_tf32(against)
    if compiled:
        twin = copy.deepcopy(one)
        for module in (twin.denoiser, twin.classifier):
            module.net.compile()  # pyright: ignore[reportOptionalMemberAccess]
        tried["torch.compile"] = gradient(plain, twin, samples)
    for name, function in tried.items():
        ratios.add(name, *in_turn(turns, function, against))
    return ratios


def refill(turns: int, overrides: list[str]) -> Ratios:
    """Measure protocol=strict with refilled batch slots against batch by batch, and compare their rows."""
    base = ["protocol=strict", "purifier=diffpure", "protocol.images=64", "protocol.seeds=[1]"]
    base += ["threat_model.eps=80/255", "dataset.lanes=8", *overrides]
    rows_by_window: dict[int, list] = {}

    def defended(window: int) -> Callable[[], None]:
        evaluation = build(compose.composed(*base, f"window={window}"))
        units = [unit for unit in evaluation.plan() if unit.arm == "defended"]

        def go() -> None:
            rows = [row for unit in units for row in evaluation.run(unit).rows]
            rows_by_window[window] = sorted(rows, key=lambda row: row["id"])

        return go

    many, one = in_turn(turns, defended(8), defended(1), warm=False)
    attack = build(compose.composed(*base)).arms["defended"].attack
    first = attack.phase_ends[0]
    early = sum(row["iterations"] <= first for row in rows_by_window[1])
    ratios = Ratios(
        f"protocol=strict, {len(rows_by_window[1])} images in 8 slots, {early} broken by its first attack "
        f"({first} of {attack.steps} steps)"
    )
    ratios.add("refilling slots / batch by batch", many, one, bound=0.75)
    print(f"rows equal: {rows_by_window[8] == rows_by_window[1]}")
    return ratios


def _in_tf32(function: Callable[[], object]) -> Callable[[], object]:
    def faster() -> None:
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        try:
            function()
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before

    return faster


def measured(args: argparse.Namespace) -> tuple[str, Ratios]:
    """The name of the mode that is asked for, and its ratios."""
    images, overrides = args.images or (1 if args.full else 32), [f"device={args.device}", *args.overrides]
    if args.start:
        ratios, sides = Ratios("one thread"), (Path(__file__).parents[2], Path(args.start))
        ratios.add("start to first iteration, this checkout / the other", *medians(args.turns, *sides), bound=0.75)
        return "start", ratios
    if args.refill:
        return "refill", refill(args.turns, overrides)
    size = " full" if args.full else ""
    if args.official:
        return f"official{size}", against(args.turns, images, args.samples, args.full, overrides)
    if args.switches:
        compiled = args.compile or args.device.startswith("cuda")
        return f"switches{size}", switches(args.turns, images, args.samples, args.full, compiled, overrides)
    if args.full:
        return "full", full_size(args.turns, images, overrides)
    return "digits", embedded(args.turns, overrides)


def main() -> int:
    """The command. Returns 0 when all ratios are printed."""
    parser = outputs.parser(__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--loading", action="store_true", help="memory and time to load 2.2 GB of weights")
    mode.add_argument("--official", action="store_true", help="against GaozhengPei/Purification, on PYTHONPATH")
    mode.add_argument(
        "--switches", action="store_true", help="bf16, packing; on a GPU also TF32 and torch.compile, one at a time"
    )
    mode.add_argument("--start", metavar="CHECKOUT", help="time to the first iteration, against another checkout")
    mode.add_argument("--refill", action="store_true", help="batch slots with and without refill")
    parser.add_argument("--full", action="store_true", help="networks of full size (10 minutes or more on a CPU)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda; TF32 needs cuda")
    parser.add_argument("--compile", action="store_true", help="with --switches: torch.compile also on a CPU")
    parser.add_argument("--turns", type=int, default=5, help="turns that count for each ratio (default 5)")
    parser.add_argument("--images", type=int, help="images per call (default 32, with --full 1)")
    parser.add_argument(
        "--samples", type=int, default=4, help="with --official or --switches: samples per iteration (default 4)"
    )
    parser.add_argument("overrides", nargs="*", help="configuration, as for dp run (default: diffpure, 10 steps)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.loading:
        loading(console)
        return 0
    if args.write and args.overrides:
        raise ValueError("need --write without overrides, got both: the table is of the defaults")
    name, ratios = measured(args)
    ratios.show()
    ratios.write(outputs.target(TABLE, args.write), name)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, "interrupted"))
