"""The cost of a run without the run: on this machine, measured, or on a GPU that is not here, by counted FLOPs."""

import copy
import time
from collections.abc import Iterator

from dp.audit import battery
from dp.defense.memory import bytes_per_call
from dp.diffusion.checkpointing import ActivationCheckpointing
from dp.diffusion.denoisers import Denoiser
from dp.evaluation.dry import dry_nfe
from dp.evaluation.estimate import Counted, OnGpus, estimate
from dp.evaluation.evaluate import Evaluation
from dp.evaluation.work import Rates, costs, total
from dp.output import cost_report
from dp.output.console import console
from dp.precision import DTYPES, cast, tensor_cores
from dp.purifiers.module import PurifierModule
from dp.rng import Streams
from dp.runs.build import assembled, build, defense_around, network
from dp.runs.compose import Setup
from dp.runs.early import check_early
from dp.runs.flops import Sizes, sizes
from dp.runs.gpus import BYTES, COUNTS, GPUS, ROOM, SHARE, Gpu
from dp.runs.keys import run_key
from dp.runs.machine import shard_of, stays_here, workers_of
from dp.runs.skeleton import denoiser_on_meta, without_files
from dp.runs.timing import call_seconds
from dp.runs.together import Seen, seen_together
from dp.runs.validate import check_setup
from dp.weights.needed import missing


def show_cost(setup: Setup) -> cost_report.Cell:
    """Print what a command's run would cost, as its key `cost` says, and return it in short. Nothing is attacked,
    fetched or written.
    """
    check_setup(setup)
    check_early(setup.config)
    console.print(f"cost of {run_key(setup.config)}; nothing is run")
    return show_here(setup.config) if setup.config["cost"] is True else show_on(setup.config, setup.config["cost"])


def show_here(config: dict) -> cost_report.Cell:
    """Print the cost on this machine, and return it. No cluster is asked for its workers."""
    absent = missing(config)
    if absent:
        console.print(cost_report.untrained_line(len(absent)))
    known = without_files(config) if absent else config
    evaluation = build(known)
    shard = evaluation.of_shard(*shard_of(config), workers_of(config))
    workers = min(workers_of(config), len(shard.plan()))  # a run starts no more than it has units
    nfe, start = dry_nfe(evaluation.arms["defended"].attacked, evaluation.first), time.process_time()
    seen = seen_together(known, evaluation, workers)
    here = estimate(shard, seen.found.work)
    for line in cost_report.measured_lines(seen.found.images, seen.found.whole, evaluation.device):
        console.print(line)
    console.print(cost_report.parts_table(here, "CPU time" if evaluation.device == "cpu" else "time"))
    memory = _memory(evaluation, seen, nfe)
    starts = (start,) if workers == 1 else (start, *[seen.start] * workers)
    alone = stays_here(config)
    for line in cost_report.here_lines(here, starts, memory, alone):
        console.print(line)
    for dtype, ratio in _other_precisions(known, evaluation, seen.found.images):
        console.print(cost_report.precision_line(dtype, ratio, here))
    longer = battery.due(config["audit"], evaluation, nfe)
    for line in cost_report.bounds(bool(evaluation.judge and evaluation.judge.retire), longer):
        console.print(line)
    together = here.on(workers).seconds
    one = "worker" if alone else "worker of this machine"
    return {"one": one, "several": workers, "seconds": here.seconds, "together": together, "memory": memory}


def show_on(config: dict, name: str) -> cost_report.Cell:
    """Print the cost on a GPU of `GPUS`, and return it."""
    gpu, config = GPUS[name], without_files(config)
    defense = defense_around(network(config, "classifier", "cpu"), denoiser_on_meta(config), config, "cpu")
    evaluation = assembled(config, defense, defense, "cpu")
    size = sizes(evaluation.arms["defended"].scored, evaluation.first)
    kinds = [on_gpu(config, evaluation, size, gpu, dtype) for dtype in gpu.peak]
    for line in cost_report.counted_lines(counted(evaluation, size), kinds[0].nfe, len(evaluation.subset.ids)):
        console.print(line)
    own = next(kind for kind in kinds if kind.dtype == config["dtype"])
    console.print(cost_report.parts_table(own.estimate, f"{own.dtype}, one GPU"))
    console.print(cost_report.gpu_table(name, kinds, COUNTS))
    for line in cost_report.gpu_lines(own, COUNTS, gpu.source):
        console.print(line)
    one, several = (own.estimate.on(count).seconds for count in COUNTS[:2])
    return {"one": name, "several": COUNTS[1], "seconds": one, "together": several, "memory": own.memory}


def on_gpu(config: dict, evaluation: Evaluation, size: Sizes, gpu: Gpu, dtype: str) -> OnGpus:
    """The estimate on such GPUs in one precision. The memory mode of the evaluation's networks is set for it."""
    attacked, scored, _ = evaluation.arms["defended"]
    nfe, number, weights = dry_nfe(attacked, evaluation.first), BYTES[dtype], BYTES[dtype] * size.weights
    width = evaluation.lanes * scored.draws_per_call * number
    room = ROOM * (gpu.memory - weights) / width - size.classifier.kept
    fit = nfe if not size.denoiser.kept else int(max(1, room / size.denoiser.kept))
    newest = ActivationCheckpointing().keep
    kept = {"store": nfe, "recompute": min(nfe, newest), "auto": min(nfe, fit)}[config["memory"]]
    for module in scored.modules():
        if isinstance(module, Denoiser | PurifierModule):
            module.memory = "store" if kept >= nfe else "recompute"
            module.recompute.keep = max(1, kept)
    memory = weights + width * (kept * size.denoiser.kept + size.classifier.kept)
    speed = gpu.peak[dtype] * SHARE[dtype]
    time_taken = estimate(evaluation.of_shard(*shard_of(config), 1), costs(evaluation, size.rates), speed)
    return OnGpus(dtype, gpu.peak[dtype], SHARE[dtype], kept, nfe, memory, time_taken)


def counted(evaluation: Evaluation, size: Sizes) -> Counted:
    """The arithmetic behind the estimates. A purification is counted by the answer of the classifier that follows."""
    answers = costs(evaluation, Rates(0.0, 1.0, 0.0, 0.0, 0.0))
    images = len(evaluation.subset.ids) * len(evaluation.seeds)
    own = answers["defended"]
    scored = own.score + answers["null"].total
    plain = size.rates._replace(again=0.0)
    return Counted(
        call=size.denoiser[:2],
        answer=size.classifier[:2],
        attacked=images * own.attack(own.steps),
        scored=images * scored,
        flops=total(evaluation.plan(), costs(evaluation, plain), evaluation.lanes),
    )


def _memory(evaluation: Evaluation, seen: Seen, nfe: int) -> float:
    """Bytes that one process needs at most: as measured, or what it stores for a gradient that was not taken."""
    if seen.found.whole:
        return seen.memory
    one, (attacked, _, _) = evaluation.first, evaluation.arms["defended"]
    each = bytes_per_call(attacked, one.x, Streams(one.ids, 0, "probe"))
    kept = [m.recompute.keep for m in attacked.modules() if isinstance(m, Denoiser) and m.memory == "recompute"]
    width = evaluation.lanes * attacked.draws_per_call
    return seen.memory + width * (min([nfe, *kept]) * each.call + each.classifier)


def _other_precisions(config: dict, evaluation: Evaluation, images: int) -> Iterator[tuple[str, float]]:
    """Each other precision, and the time of a gradient through one call of the denoiser over the same in this one."""
    device, denoiser = evaluation.device, copy.deepcopy(evaluation.arms["defended"].attacked.denoiser)  # not compiled
    if denoiser is None:
        return
    for dtype, kind in DTYPES.items():
        if dtype == config["dtype"] or (device == "cpu" and kind is DTYPES[config["dtype"]]):
            continue
        other = network(config, "denoiser", device)
        cast(other.net, kind)
        seconds = []
        for each, name in ((other, dtype), (denoiser, config["dtype"])):
            with tensor_cores(name == "tf32"):
                seconds.append(call_seconds(each, evaluation, images)[1])
        yield dtype, seconds[0] / seconds[1]
