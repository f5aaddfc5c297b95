"""Speed and memory as ratios: each pair is measured side by side, in turn, in this one process, on one thread.

The figures are medians over the turns: of this process's seconds on a CPU, of wall time on a GPU.

By default on the embedded digits. Other modes:
  --full      networks of CIFAR-10's full size (denoiser=edm_cifar10, wrn_28_10) with random weights
  --official  against the released code's own attack loop (a checkout of GaozhengPei/Purification on PYTHONPATH), on
              small networks, or with --full on large ones
  --switches  bf16, samples in one call and, on a GPU or where --compile asks for it, torch.compile, on a GPU TF32 too,
              switched on one at a time
  --refill    batch slots that broken images leave to others
  --loading   memory and time to load weights
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
import torch
from bench_loading import loading
from bench_tools import attacked, floor, gradient, in_format, in_turn, iteration, peak
from rich import box
from rich.console import Console
from rich.table import Table

from dp.defense.defended import Defended
from dp.defense.memory import activation_bytes
from dp.evaluation.evaluate import Evaluation
from dp.purifiers import diffpure
from dp.rng import Streams
from dp.runs import compose
from dp.runs.build import build, dry_nfe
from dp.runs.errors import command

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
console = Console(width=118, highlight=False)


class Ratios:
    """The table that grows a line per pair."""

    def __init__(self, title: str):
        self.table = Table("measured", "ratio", "at most", "", box=box.SIMPLE_HEAD, title=title)

    def add(self, name: str, one: float, other: float, *, bound: float | None = None, unit: str = "s") -> None:
        limit = "" if bound is None else f"{bound:.2f}"
        self.table.add_row(name, f"{one / other:.3f}", limit, f"{one:.4g} / {other:.4g} {unit}")
        print(f"{name}: {one / other:.3f} ({one:.4g} / {other:.4g} {unit})", file=sys.stderr, flush=True)

    def show(self) -> None:
        console.print(self.table)


def costs(ratios: Ratios, turns: int, make: Callable[..., dict], full: bool) -> Evaluation:
    """What recomputation and the attack loop cost, in time and memory, on the networks of make(overrides). The bounds
    are for networks of full size.
    """
    bounds = (1.45, 1.10, 1.3) if full else (None, None, None)
    store, recompute = (build(make(f"memory={m}")) for m in ("store", "recompute"))
    nfe = dry_nfe(store.arms["defended"].attacked, store.subset.select(slice(0, 1)))
    bare = [in_format(copy.deepcopy(store), f) for f in FORMATS.values()]
    once = in_turn(3, *(floor(e, 1, f) for e, f in zip(bare, FORMATS.values(), strict=True)))
    best = once.index(min(once))
    fastest = floor(bare[best], nfe, list(FORMATS.values())[best])
    again, stored, least = in_turn(turns, iteration(recompute), iteration(store), fastest, warm=not full)
    ratios.add("recompute / store, one attack iteration", again, stored, bound=bounds[0])
    name = f"attack iteration / its {nfe} + 1 bare calls, {list(FORMATS)[best]}"
    ratios.add(name, stored, least, bound=bounds[1])
    hundred, ten = (peak(bench_tools.gradient_of, make("memory=recompute", f"purifier.steps={n}")) for n in (100, 10))
    ratios.add("peak memory, 100 steps / 10 steps, recompute", hundred, ten, bound=bounds[2], unit="MB")
    ratios.add(
        "peak memory, 10 steps, recompute / store", ten, peak(bench_tools.gradient_of, make("memory=store")), unit="MB"
    )
    return store


def full_size(turns: int, images: int, overrides: list[str]) -> None:
    """`costs` on the public CIFAR-10 networks with random weights, one sample per call."""
    ratios = Ratios(f"edm_cifar10 and wrn_28_10, random weights, {images} images x 1 sample, 10 steps, one thread")
    base = ("denoiser=edm_cifar10", f"dataset.lanes={images}", "dataset.draws_per_call=1", *_diffpure(overrides))
    costs(ratios, turns, lambda *more: bench_tools.random_config(*base, *more, images=images), full=True)
    ratios.show()


def _diffpure(overrides: list[str]) -> list[str]:
    """Ten steps of uniform purification, unless another purifier is asked for."""
    named = any(o.startswith("purifier=") for o in overrides)
    return overrides if named else ["purifier=diffpure", "purifier.steps=10", "threat_model.grad=full", *overrides]


def embedded(turns: int, overrides: list[str]) -> None:
    """Time and memory on the digits or on another configuration whose files are there."""
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
    ratios.show()
    _lanes([*base, "attack.iterations=5", "protocol.seeds=[1]", "protocol.votes=4"])


def _one_by_one(evaluation: Evaluation) -> tuple[Defended, int]:
    """The attacked defense with one sample per call, and how many samples a call had."""
    model = evaluation.arms["defended"].attacked
    return Defended(model.purifier, model.denoiser, model.classifier, draws_per_call=1), model.draws_per_call


def _stored(evaluation: Evaluation, steps: int) -> int:
    model = evaluation.arms["defended"].attacked
    purify = functools.partial(diffpure.purify, t=0.2, steps=steps, eta=0.0)
    one = evaluation.subset.select(slice(0, 1))
    return activation_bytes(Defended(purify, model.denoiser, model.classifier), one.x, Streams(one.ids, 0, "b"))


def _lanes(tiny: list[str]) -> None:
    """Predictions with other numbers of batch slots than 32, whose rounding differs."""
    by_lanes = {lanes: predictions(build(compose.composed(*tiny, f"dataset.lanes={lanes}"))) for lanes in (32, 16, 8)}
    for lanes in (16, 8):
        differ = sum(by_lanes[32][key] != by_lanes[lanes][key] for key in by_lanes[32])
        print(f"lanes {lanes} against 32: {differ} of {len(by_lanes[32])} rows have a sample with another prediction")


def predictions(evaluation: Evaluation) -> dict:
    rows = [row for unit in evaluation.plan() for row in evaluation.run(unit).rows]
    return {(row["arm"], row["seed"], row["id"]): (row["clean"], row["adv"]) for row in rows}


def against(turns: int, images: int, samples: int, full: bool, overrides: list[str]) -> None:
    """Our attack iteration and the released code's own: the same images, networks, method and number of samples."""
    name = "DDPM++ and WRN-28-10" if full else "small networks"
    ratios = Ratios(f"against the released code: {name}, {images} images, {samples} samples an iteration, 10 steps")
    make = functools.partial(official.config, full, images)
    evaluation = build(make(1, "store", *overrides))
    packed = build(make(samples, "store", *overrides))
    config = make(1, "store", *overrides)
    theirs = {n: official.around(evaluation, config, samples, f) for n, f in FORMATS.items()}
    with tempfile.TemporaryDirectory() as there:  # theirs writes a picture at every draw
        before = Path.cwd()
        os.chdir(there)
        ours, pack, contiguous, last = in_turn(
            turns,
            iteration(evaluation, iterations=1, eot=samples),
            iteration(packed, iterations=1, eot=samples),
            theirs["contiguous"],
            theirs["channels_last"],
            warm=not full,
        )
        ratios.add("our iteration / theirs", ours, contiguous, bound=1.0)
        ratios.add("our iteration / theirs on channels_last networks", ours, last)
        ratios.add(f"our {samples} samples in one call / theirs one by one", pack, contiguous)
        ratios.add(f"our {samples} samples in one call / ours one by one", pack, ours)
        del theirs, evaluation, packed
        least = peak(bench_tools.gradient_of, make(1, "recompute", *overrides))
        most = peak(official.loop, config, 1, FORMATS["contiguous"])
        ratios.add("peak memory, ours recomputing / theirs", least, most, bound=0.5, unit="MB")
        stored = peak(bench_tools.gradient_of, make(1, "store", *overrides))
        ratios.add("peak memory, ours storing / theirs", stored, most, unit="MB")
        os.chdir(before)
    ratios.show()


def switches(turns: int, images: int, samples: int, full: bool, compiled: bool, overrides: list[str]) -> None:
    """One attack gradient with each switch on, against float32, uncompiled, one sample per call."""
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
    ratios.show()


def refill(turns: int, overrides: list[str]) -> None:
    """The defense under protocol=strict with batch slots that are refilled, and batch by batch: the same rows."""
    base = ["protocol=strict", "purifier=diffpure", "protocol.images=64", "protocol.seeds=[1]"]
    base += ["threat_model.eps=80/255", "dataset.lanes=8", *overrides]
    found: dict[int, list] = {}

    def attacked_arm(window: int) -> Callable[[], None]:
        evaluation = build(compose.composed(*base, f"window={window}"))
        units = [unit for unit in evaluation.plan() if unit.arm == "defended"]

        def go() -> None:
            rows = [row for unit in units for row in evaluation.run(unit).rows]
            found[window] = sorted(rows, key=lambda row: row["id"])

        return go

    many, one = in_turn(turns, attacked_arm(8), attacked_arm(1), warm=False)
    attack = build(compose.composed(*base)).arms["defended"].attack
    first = attack.phase_ends[0]
    early = sum(row["iterations"] <= first for row in found[1])
    ratios = Ratios(
        f"protocol=strict, {len(found[1])} images in 8 slots, {early} broken by its first attack "
        f"({first} of {attack.steps} steps)"
    )
    ratios.add("refilling slots / batch by batch", many, one, bound=0.75)
    ratios.show()
    print(f"rows equal: {found[8] == found[1]}")


def _in_tf32(function: Callable[[], object]) -> Callable[[], object]:
    def faster() -> None:
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        try:
            function()
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before

    return faster


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--loading", action="store_true", help="memory and time to load 2.2 GB of weights")
    mode.add_argument("--official", action="store_true", help="against GaozhengPei/Purification, on PYTHONPATH")
    mode.add_argument(
        "--switches", action="store_true", help="bf16, packing; on a GPU also TF32 and torch.compile, one at a time"
    )
    mode.add_argument("--refill", action="store_true", help="batch slots that broken images leave to others, and not")
    parser.add_argument("--full", action="store_true", help="networks of full size: 10 minutes or more on a CPU")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda; TF32 is there on cuda only")
    parser.add_argument("--compile", action="store_true", help="--switches: torch.compile on a CPU too (C++ compiler)")
    parser.add_argument("--turns", type=int, default=5, help="counted turns of each pair (default 5)")
    parser.add_argument("--images", type=int, help="images per call (default 32, with --full 1)")
    parser.add_argument(
        "--samples", type=int, default=4, help="--official, --switches: samples an iteration (default 4)"
    )
    parser.add_argument("overrides", nargs="*", help="configuration, as for dp run (default: diffpure, 10 steps)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = args.images or (1 if args.full else 32)
    overrides = [f"device={args.device}", *args.overrides]
    if args.loading:
        loading(console)
    elif args.refill:
        refill(args.turns, overrides)
    elif args.official:
        against(args.turns, images, args.samples, args.full, overrides)
    elif args.switches:
        compiled = args.compile or args.device.startswith("cuda")
        switches(args.turns, images, args.samples, args.full, compiled, overrides)
    elif args.full:
        full_size(args.turns, images, overrides)
    else:
        embedded(args.turns, overrides)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, "interrupted"))
