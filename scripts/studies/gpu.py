"""Measure the paper's row on a GPU, one switch after another: python scripts/studies/gpu.py [--quick].

The networks are those of Table 1 at full size (WRN-28-10, EDM's DDPM++ at 32x32) with random weights, on random images,
32 batch slots x 4 samples in a call. The lines are: the noise of rng=2 on the CPU and on the GPU, bit for bit; one
gradient of the attack through the surrogate in float32, tf32, then bfloat16, then with noise from the device, then with
compiled networks, each with the switches of the one before; one exact gradient with all of them; and in bfloat16 the
estimate of `cost=true` against a run, and one unit twice, byte for byte.

Each line is a process of its own, so that a failure costs no other line. It is written as soon as it is measured, to
gpu.jsonl and gpu.md in results/studies/. Lines for which no time is left say so. The exit code is 1 if a line is
not measured, if noise or a unit has other bytes, or if the estimate is off by over 15 %. `--quick` does all of it with
small networks in one process, on a CPU too; its figures mean nothing, and its estimate is not judged.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import bench_tools
import torch

from dp import compiled
from dp.evaluation.dry import dry_nfe
from dp.evaluation.evaluate import Evaluation
from dp.output.console import console
from dp.output.record import ROOT, append, write_atomic
from dp.rng import Streams
from dp.runs.build import build
from dp.runs.errors import command
from dp.runs.flops import sizes
from dp.runs.gpus import GPUS
from dp.runs.machine import gpus, workers_of
from dp.runs.timing import Clock, here_of

BUDGET = 450.0  # seconds for all lines
LEAST = 20.0  # seconds that a line takes at least
TURNS = 3  # calls whose median counts, after the first
ROW = ("+experiment=table1/hetero", "threat_model.grad=surrogate", "device=auto", "workers=1")
PURIFICATIONS = 512 * 3 * 200 * 20  # of the attack in Table 1's row
SMALL = (
    "denoiser.net.net.model_channels=8", "denoiser.net.net.num_blocks=1", "denoiser.net.net.channel_mult=[1]",
    "classifier.net.net.depth=10", "classifier.net.net.widen=1", "classifier.taps=[relu]", "dataset.lanes=2",
    "dataset.draws_per_call=1", "purifier.steps=3", "purifier.gradients.surrogate.steps=2", "attack.iterations=1",
    "attack.eot=1", "protocol.votes=1",
)  # fmt: skip
TF32, BFLOAT16 = ((f"dtype={name}", f"scored_dtype={name}") for name in ("tf32", "bfloat16"))
SWITCHES = ("rng=2", "compile=true")  # noise from the device; compiled networks
NOISE, AGREEMENT = "noise of rng=2 on both devices", "estimate and repetition, bfloat16"
OFF = 0.15  # share of the truth by which the estimate may be off
RUN = (*BFLOAT16, "rng=2", "attack.iterations=2", "attack.eot=4", "protocol.votes=4", "protocol.seeds=[0]")


def lines() -> dict[str, tuple[str, ...]]:
    """The lines by name, with their overrides. Networks are compiled last, because this may take most of the time."""
    device_noise, compiles = SWITCHES
    return {
        NOISE: (),
        "float32": (),
        "tf32": TF32,
        "bfloat16": BFLOAT16,
        f"bfloat16 {device_noise}": (*BFLOAT16, device_noise),
        AGREEMENT: RUN,
        f"bfloat16 {device_noise} {compiles}": (*BFLOAT16, *SWITCHES),
        "the same, exact gradient": (*BFLOAT16, *SWITCHES, "threat_model.grad=full"),
    }


def evaluation_of(line: str, quick: bool) -> tuple[dict, Evaluation]:
    """The configuration and the objects of a line."""
    torch.manual_seed(0)
    config = bench_tools.random_config(*ROW, *lines()[line], *(SMALL if quick else ()), images=2 if quick else 32)
    return config, build(config)


def speed(line: str, quick: bool) -> dict:
    """One gradient of the attack with all images and samples of a call."""
    _, evaluation = evaluation_of(line, quick)
    attacked, clock = evaluation.arms["defended"].attacked, Clock(evaluation.device)
    images = bench_tools.attacked(evaluation)[1].select(slice(0, evaluation.lanes))
    one, rng = sizes(attacked, evaluation.first), bench_tools.attacked(evaluation)[2].select(range(evaluation.lanes))
    nfe, width = dry_nfe(attacked, evaluation.first), evaluation.lanes * attacked.draws_per_call

    def once() -> float:
        begin = clock.now()
        attacked.loss_gradient(images.x, images.y, rng, attacked.draws_per_call)
        return clock.now() - begin

    first, cuda = once(), evaluation.device != "cpu"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(once() for _ in range(1 if quick else TURNS))
    rate = width * (nfe * one.denoiser.gradient + one.classifier.gradient) / seconds
    peak = peak_of(line)
    return {
        "nfe": nfe,
        "first_seconds": first,
        "seconds": seconds,
        "samples_per_second": width / seconds,
        "tflops": rate / 1e12,
        "share": None if peak is None else rate / peak,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        "hours_of_the_row": PURIFICATIONS * seconds / width / 3600,
    }


def peak_of(line: str) -> float | None:
    """FLOP/s of this GPU by its data sheet in the precision of a line, or None if it is not in `dp.runs.gpus.GPUS`."""
    name = torch.cuda.get_device_name().lower().replace(" ", "") if gpus() else ""
    known = next((gpu for key, gpu in GPUS.items() if key in name), None)
    return None if known is None else known.peak[line if line in known.peak else "bfloat16"]


def agreement(line: str, quick: bool) -> dict:
    """The estimate of a small run and the seconds that its units then take; and its first unit once more."""
    config, evaluation = evaluation_of(line, quick)
    clock, (_, here) = Clock(evaluation.device), here_of(config, evaluation, workers_of(config))
    begin = clock.now()
    groups = [evaluation.run(unit) for unit in evaluation.plan()]
    took, first = clock.now() - begin, groups[0]
    again = evaluation.run(first.unit)
    pairs = ((first.x_adv, again.x_adv), (first.adv, again.adv), (first.clean, again.clean))
    equal = all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)
    return {
        "estimated_seconds": here.seconds,
        "seconds": took,
        "estimate_over_truth": here.seconds / took,
        "twice_equal": equal and first.rows == again.rows,
        "unrepeatable": sorted({name for group in groups for name in group.unrepeatable}),
    }


def noise(line: str, quick: bool) -> dict:
    """Whether the noise of rng=2 has the same bits on the CPU and on the GPU: calls of equal shape, as a run makes."""
    images, samples, calls = (2, 1, 12) if quick else (32, 4, 12)

    def drawn(device: str) -> torch.Tensor:
        rng, like = Streams(range(images), 0, line, version=2), torch.empty(images, samples, 3, 32, 32, device=device)
        return torch.stack([draw(like).cpu() for draw in (rng.randn_like, rng.uniform_like) for _ in range(calls)])

    here, there = drawn("cpu"), drawn("cuda" if gpus() else "cpu")
    return {"numbers": here.numel(), "other": int((here.view(torch.int32) != there.view(torch.int32)).sum())}


def measured(line: str, quick: bool) -> dict:
    """What is measured for a line, with its overrides."""
    measure = {NOISE: noise, AGREEMENT: agreement}.get(line, speed)
    if quick:
        compiled.BACKEND = "aot_eager"  # needs no compiler
    return {"overrides": lines()[line], **measure(line, quick)}


def in_its_process(line: str, seconds: float) -> dict:
    """The same in a process of its own. Raises ValueError with the last line that it says, if it fails."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--line", line], capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"took more than the {seconds:.0f} s that were left") from None
    said = done.stdout.strip().splitlines()
    if done.returncode or not said:
        raise ValueError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return json.loads(said[-1])


def study(quick: bool, budget: float) -> Iterator[dict]:
    """All lines, one after another. A line that fails has an `error`."""
    until = time.monotonic() + budget
    for line in lines():
        begin, left = time.monotonic(), until - time.monotonic()
        try:
            if left < LEAST:
                raise ValueError(f"no time left of {budget:.0f} s")
            found = measured(line, quick) if quick else in_its_process(line, left)
        except Exception as error:  # whatever it is, the other lines are measured
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        yield {"line": line, **found, "wall_seconds": time.monotonic() - begin}


def faults(found: Sequence[dict], quick: bool) -> list[str]:
    """What is not measured or not as it should be, each in a line."""
    said = []
    for line in found:
        name, ratio = line["line"], line.get("estimate_over_truth", 1.0)
        if "error" in line:
            said.append(f"not measured: {name} ({line['error']})")
        if line.get("other"):
            said.append(f"FAILED: {name}: {line['other']} of {line['numbers']} numbers have other bits")
        if not line.get("twice_equal", True):
            said.append(f"FAILED: {name}: a unit made twice has other bytes")
        if abs(ratio - 1) > OFF and not quick:
            said.append(f"FAILED: {name}: the estimate was {ratio:.2f} of the truth, over {100 * OFF:.0f} % off")
    return said


def page(found: Sequence[dict], device: str, quick: bool) -> str:
    """The lines as Markdown."""
    small = " Small networks: these figures mean nothing." if quick else ""
    text = [f"Measured on {device} by `scripts/studies/gpu.py`, torch {torch.__version__}.{small}", ""]
    text += [
        "| line | purified samples/s | TFLOP/s | share of the peak | peak GB | hours of Table 1's attack |",
        "|" + "---|" * 6,
    ]
    for line in found:
        if "samples_per_second" in line:
            share = "-" if line["share"] is None else f"{line['share']:.2f}"
            memory = "-" if line["peak_gb"] is None else f"{line['peak_gb']:.1f}"
            cells = f"{line['samples_per_second']:.3g} | {line['tflops']:.3g} | {share} | {memory}"
            text.append(f"| {line['line']} | {cells} | {line['hours_of_the_row']:.3g} |")
    for line in found:
        if "twice_equal" in line:
            share = f"{line['estimate_over_truth']:.2f} of the {line['seconds']:.3g} s that the run took"
            equal = "the same bytes" if line["twice_equal"] else "other bytes"
            names = ", ".join(line["unrepeatable"]) or "nothing"
            text += ["", f"The estimate of `cost=true` was {share}. One unit twice: {equal}; torch warns of {names}."]
        if "other" in line:
            text += ["", f"The {line['line']}: {line['other']} of {line['numbers']} numbers differ."]
    text += [f"\n{fault}" for fault in faults(found, quick)]
    return "\n".join(text) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if all lines are measured and as they should be, else 1; it prints which are not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks, in seconds, on a CPU too")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds for all lines (default {BUDGET:.0f})")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "studies", help="folder of gpu.jsonl and gpu.md")
    parser.add_argument("--line", choices=lines(), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.line:
        print(json.dumps(measured(args.line, args.quick)))
        return 0
    if not args.quick and not gpus():
        raise ValueError("need a GPU, got none: --quick tries the script without one")
    device = torch.cuda.get_device_name() if gpus() else "a CPU"
    args.out.mkdir(parents=True, exist_ok=True)
    data, found = args.out / "gpu.jsonl", []
    data.unlink(missing_ok=True)
    for line in study(args.quick, args.budget):
        found.append(line)
        append(data, [{"device": device, **line}])
        write_atomic(args.out / "gpu.md", page(found, device, args.quick).encode())
        console.print(json.dumps(line))
    console.print(f"results: {data}, {args.out / 'gpu.md'}")
    wrong = faults(found, args.quick)
    for fault in wrong:
        console.print(fault)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(command(main, "interrupted; the lines so far are written"))
