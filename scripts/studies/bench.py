"""Speed and memory as ratios, each pair measured side by side, in turn, in this one run, on one thread; medians over
the turns, of this process's seconds on a CPU, of wall time on a GPU.

By default on the embedded digits. --full: networks of CIFAR-10's full size (denoiser=edm_cifar10, wrn_28_10) with
random weights; --official FOLDER: against the released code's own attack loop (a checkout of GaozhengPei/Purification),
on small networks, or with --full on large ones; --switches: bf16, packed draws and, on a GPU or where --compile asks
for it, torch.compile, on a GPU TF32 too, switched on one at a time; --refill: lanes that lost images leave to others;
--loading: memory and time to load weights.
"""

import argparse
import copy
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import bench_tools
import official
import torch
from bench_tools import attacked, floor, gradient, in_format, in_turn, iteration, peak, resident
from hydra.utils import instantiate
from rich import box
from rich.console import Console
from rich.table import Table
from told import told

import run
from dp.defense.defended import Defended
from dp.defense.memory import activation_bytes
from dp.evaluation.evaluate import Evaluation
from dp.purifiers import diffpure
from dp.rng import Streams

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
    store, recompute = (run.build(make(f"memory={m}")) for m in ("store", "recompute"))
    nfe = run.dry_nfe(store.arms["defended"].attacked, store.subset.select(slice(0, 1)))
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
    """`costs` on the public CIFAR-10 networks with random weights, one draw per call."""
    ratios = Ratios(f"edm_cifar10 and wrn_28_10, random weights, {images} images x 1 draw, 10 steps, one thread")
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
    ratios = Ratios("one thread, 32 images x draws per call")
    store = costs(ratios, turns, lambda *more: run.composed(*base, *more), full=False)
    plain = in_format(run.build(run.composed(*base, "memory=store")), torch.contiguous_format)
    ratios.add("channels_last / contiguous, one attack gradient", *in_turn(turns, gradient(store), gradient(plain)))
    serial, draws = _one_by_one(store)
    pair = in_turn(turns, gradient(store), gradient(store, serial, draws))
    ratios.add("draws in one call / draws one by one", *pair)
    for memory in ("store", "recompute"):
        evaluation = run.build(run.composed(*base, f"memory={memory}"))
        ten, hundred = (_stored(evaluation, steps) / 1e6 for steps in (10, 100))
        ratios.add(f"stored for backward an image, 100 steps / 10 steps, {memory}", hundred, ten, unit="MB")
    ratios.show()
    _lanes([*base, "attack.iterations=5", "protocol.seeds=[1]", "protocol.votes=4"])


def _one_by_one(evaluation: Evaluation) -> tuple[Defended, int]:
    """The attacked defence with one draw per call, and how many draws it had."""
    model = evaluation.arms["defended"].attacked
    return Defended(model.purifier, model.denoiser, model.classifier, draws_per_call=1), model.draws_per_call


def _stored(evaluation: Evaluation, steps: int) -> int:
    model = evaluation.arms["defended"].attacked
    purify = functools.partial(diffpure.purify, t=0.2, steps=steps, eta=0.0)
    one = evaluation.subset.select(slice(0, 1))
    return activation_bytes(Defended(purify, model.denoiser, model.classifier), one.x, Streams(one.ids, 0, "b"))


def _lanes(tiny: list[str]) -> None:
    """Verdicts of other lane counts than 32, which round otherwise."""
    by_lanes = {lanes: verdicts(run.build(run.composed(*tiny, f"dataset.lanes={lanes}"))) for lanes in (32, 16, 8)}
    for lanes in (16, 8):
        differ = sum(by_lanes[32][key] != by_lanes[lanes][key] for key in by_lanes[32])
        print(f"lanes {lanes} against 32: {differ} of {len(by_lanes[32])} rows have a draw with another verdict")


def verdicts(evaluation: Evaluation) -> dict:
    rows = [row for unit in evaluation.plan() for row in evaluation.run(unit).rows]
    return {(row["arm"], row["seed"], row["id"]): (row["clean"], row["adv"]) for row in rows}


def against(folder: Path, turns: int, images: int, draws: int, full: bool, overrides: list[str]) -> None:
    """Our attack iteration and the released code's own: the same images, networks, method and number of draws."""
    name = "DDPM++ and WRN-28-10" if full else "small networks"
    ratios = Ratios(f"against the released code: {name}, {images} images, {draws} draws an iteration, 10 steps")
    make = functools.partial(official.config, full, images)
    evaluation = run.build(make(1, "store", *overrides))
    packed = run.build(make(draws, "store", *overrides))
    config = make(1, "store", *overrides)
    theirs = {n: official.around(folder, evaluation, config, draws, f) for n, f in FORMATS.items()}
    with tempfile.TemporaryDirectory() as there:  # theirs writes a picture at every draw
        before = Path.cwd()
        os.chdir(there)
        ours, pack, contiguous, last = in_turn(
            turns,
            iteration(evaluation, iterations=1, eot=draws),
            iteration(packed, iterations=1, eot=draws),
            theirs["contiguous"],
            theirs["channels_last"],
            warm=not full,
        )
        ratios.add("our iteration / theirs", ours, contiguous, bound=1.0)
        ratios.add("our iteration / theirs on channels_last networks", ours, last)
        ratios.add(f"our {draws} draws in one call / theirs one by one", pack, contiguous)
        ratios.add(f"our {draws} draws in one call / ours one by one", pack, ours)
        del theirs, evaluation, packed
        least = peak(bench_tools.gradient_of, make(1, "recompute", *overrides))
        most = peak(official.loop, folder, config, 1, FORMATS["contiguous"])
        ratios.add("peak memory, ours recomputing / theirs", least, most, bound=0.5, unit="MB")
        stored = peak(bench_tools.gradient_of, make(1, "store", *overrides))
        ratios.add("peak memory, ours storing / theirs", stored, most, unit="MB")
        os.chdir(before)
    ratios.show()


def switches(turns: int, images: int, draws: int, full: bool, compiled: bool, overrides: list[str]) -> None:
    """One attack gradient with each switch on, against float32, uncompiled, one draw per call."""
    base = [f"dataset.lanes={images}", f"dataset.draws_per_call={draws}", "memory=store", *_diffpure(overrides)]

    def build(*more: str) -> Evaluation:
        if full:
            return run.build(bench_tools.random_config("denoiser=edm_cifar10", *base, *more, images=images))
        return run.build(run.composed(f"protocol.images={images}", *base, *more))

    plain, low = build(), build("dtype=bfloat16")
    one, many = _one_by_one(plain)[0], attacked(plain)[0]
    ratios = Ratios(f"{images} images x {draws} draws, {plain.device}: switched on / float32, one draw per call")
    against = gradient(plain, one, draws)
    tried = {"bf16": gradient(low, _one_by_one(low)[0], draws), "packed draws": gradient(plain, many, draws)}
    if plain.device.startswith("cuda"):
        tried["TF32"] = _in_tf32(against)
    if compiled:
        twin = copy.deepcopy(one)
        for module in (twin.denoiser, twin.classifier):
            module.net.compile()  # pyright: ignore[reportOptionalMemberAccess]
        tried["torch.compile"] = gradient(plain, twin, draws)
    for name, function in tried.items():
        ratios.add(name, *in_turn(turns, function, against))
    ratios.show()


def refill(turns: int, overrides: list[str]) -> None:
    """The defended arm under protocol=strict with lanes that are refilled, and batch by batch: the same rows."""
    base = ["protocol=strict", "purifier=diffpure", "protocol.images=64", "protocol.seeds=[1]"]
    base += ["threat_model.eps=80/255", "dataset.lanes=8", *overrides]
    found: dict[int, list] = {}

    def judged(window: int) -> Callable[[], None]:
        evaluation = run.build(run.composed(*base, f"window={window}"))
        units = [unit for unit in evaluation.plan() if unit.arm == "defended"]

        def go() -> None:
            rows = [row for unit in units for row in evaluation.run(unit).rows]
            found[window] = sorted(rows, key=lambda row: row["id"])

        return go

    many, one = in_turn(turns, judged(8), judged(1), warm=False)
    attack = run.build(run.composed(*base)).arms["defended"].attack
    first = attack.phase_ends[0]
    early = sum(row["iterations"] <= first for row in found[1])
    ratios = Ratios(
        f"protocol=strict, {len(found[1])} images in 8 lanes, {early} lost to its first attack "
        f"({first} of {attack.steps} steps)"
    )
    ratios.add("refilling lanes / batch by batch", many, one, bound=0.75)
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


def fake_weights(folder: Path) -> Path:
    """A file in the layout of the public 256x256 checkpoint, with random numbers."""
    make = instantiate(run.composed("dataset=imagenet")["denoiser"]["net"]["net"], _convert_="all")
    with torch.device("meta"):
        names = make().state_dict()
    path = folder / "256x256_diffusion_uncond.pt"
    torch.save({name: torch.randn(value.shape) for name, value in names.items()}, path)
    return path


def loaded(way: str, folder: str) -> tuple[float, float]:
    """Megabytes and seconds from nothing to a network in channels_last whose every weight has been read. `way`: `ours`,
    or `usual`, which builds the network, reads the file and copies it in.
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
    return resident()[1] - before, time.perf_counter() - began


def loading() -> None:
    """Peak memory and time to load the 256x256 layout, against the file's size and the usual way."""
    table = Table("loading 2.2 GB", "peak MB", "peak - file, in copies", "seconds", box=box.SIMPLE_HEAD)
    with tempfile.TemporaryDirectory() as folder:
        size = fake_weights(Path(folder)).stat().st_size / 1e6
        for way in ("ours", "usual", "ours", "usual"):
            most, seconds = bench_tools.in_process(loaded, way, folder)
            said = {"ours": "mapped, hash checked", "usual": "build, read, copy, no hash"}[way]
            table.add_row(said, f"{most:.0f}", f"{(most - size) / size:.2f}", f"{seconds:.1f}")
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--loading", action="store_true", help="memory and time to load 2.2 GB of weights")
    mode.add_argument("--official", type=Path, metavar="FOLDER", help="a checkout of GaozhengPei/Purification")
    mode.add_argument(
        "--switches", action="store_true", help="bf16, packing; on a GPU also TF32 and torch.compile, one at a time"
    )
    mode.add_argument("--refill", action="store_true", help="lanes that lost images leave to others, and not")
    parser.add_argument("--full", action="store_true", help="networks of full size: 10 minutes or more on a CPU")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda; TF32 is there on cuda only")
    parser.add_argument("--compile", action="store_true", help="--switches: torch.compile on a CPU too (C++ compiler)")
    parser.add_argument("--turns", type=int, default=5, help="counted turns of each pair (default 5)")
    parser.add_argument("--images", type=int, help="images per call (default 32, with --full 1)")
    parser.add_argument("--draws", type=int, default=4, help="--official, --switches: draws an iteration (default 4)")
    parser.add_argument("overrides", nargs="*", help="configuration, as for run.py (default: diffpure, 10 steps)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = args.images or (1 if args.full else 32)
    overrides = [f"device={args.device}", *args.overrides]
    if args.loading:
        loading()
    elif args.refill:
        refill(args.turns, overrides)
    elif args.official:
        against(args.official.resolve(), args.turns, images, args.draws, args.full, overrides)
    elif args.switches:
        compiled = args.compile or args.device.startswith("cuda")
        switches(args.turns, images, args.draws, args.full, compiled, overrides)
    elif args.full:
        full_size(args.turns, images, overrides)
    else:
        embedded(args.turns, overrides)
    return 0


if __name__ == "__main__":
    sys.exit(told(main, "interrupted"))
