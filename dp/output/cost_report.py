"""The text about the cost of a run that is not started: tables and lines, from plain data."""

from collections.abc import Iterator, Sequence
from typing import TypedDict

from rich import box
from rich.table import Table

from dp.evaluation.estimate import Counted, Estimate, OnGpus
from dp.evaluation.schedule import Schedule
from dp.output.report import clock, words_of_count
from dp.output.row_table import count_of

LONG = 600.0  # seconds: a run of more says so before its first iteration
FLOPS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
NAMES = {"defended": "the defense", "undefended": "the undefended classifier", "null": "the null control"}


class Cell(TypedDict):
    """What a run of a sweep would cost. `one`: a worker or a GPU, in words; `seconds`: on one of them; `together`: on
    `several`; `memory`: bytes of one of them.
    """

    one: str
    several: int
    seconds: float
    together: float
    memory: float


def parts_table(found: Estimate, title: str) -> Table:
    """The seconds of the attack and of the scoring under each condition."""
    table = Table("condition", "attack", "scoring", box=box.SIMPLE_HEAD, title=title)
    for arm, (attack, score) in found.parts.items():
        table.add_row(NAMES[arm], _share(attack, found), _share(score, found))
    return table


def untrained_line(files: int) -> str:
    """A line where files are missing, so that the networks have random weights."""
    absent = f"missing: {count_of(files, 'file')} of this configuration"
    return f"{absent}; networks with random weights and gray images cost the same"


def measured_lines(images: int, whole: bool, device: str) -> Iterator[str]:
    """What was measured."""
    if whole:
        what = "one gradient and one forward pass of the defense and of the bare classifier"
        yield f"measured on {device}: {what}, {count_of(images, 'image')} in a call"
        return
    yield (
        f"measured on {device}: single calls of the networks, {count_of(images, 'image')} in each, because a gradient "
        "of the defense takes too long here; what the purifier does between its calls is left out"
    )


def here_lines(found: Estimate, starts: Sequence[float], memory: float, alone: bool) -> Iterator[str]:
    """The time and the memory of a run on this machine. `starts`: seconds in which each of its processes begins, this
    one and, if there are several, its workers; `alone`: whether its engine has no workers but these.
    """
    processes, workers = len(starts), max(1, len(starts) - 1)
    yield (
        f"all of it: {clock(found.seconds + sum(starts))}, of which {clock(sum(starts))} to start "
        f"{processes} process{'' if processes == 1 else 'es'}"
    )
    whose = "" if alone else " of this machine alone (the engine may have others)"
    yield f"on {count_of(workers, 'worker')}{whose}: {_together(found, starts, workers)}"
    others = [count for count in (1, 2, 4, 8, 16) if count != workers]
    yield "on other numbers of such workers: " + ", ".join(f"{n}: {_together(found, starts, n)}" for n in others)
    yield f"memory: about {memory / 1e9:.2g} GB in each process"


def precision_line(dtype: str, ratio: float, found: Estimate) -> str:
    """What another precision would take. `ratio`: of the times of a call of the denoiser."""
    work = clock(ratio * found.seconds)
    return f"dtype={dtype}: a call of the denoiser takes {ratio:.2f} times as long here, and so the work about {work}"


def bounds(stops: bool, audited: bool) -> Iterator[str]:
    """Why a run may take less or more time."""
    if stops:
        yield "the attack on a broken image stops, so that the run may take less"
    if audited:
        yield "the quick audit before the first row comes on top (audit=false: none)"


def long_run_line(found: Estimate, seconds: float) -> str:
    """The line that a long run prints before it starts."""
    defended, all_parts = found.parts["defended"], found.seconds
    attack = f"{100 * defended.attack / all_parts:.0f} % of it for the attack on the defense"
    return f"estimate: this run takes about {clock(seconds)}, {attack}; cost=true says more"


def counted_lines(found: Counted, nfe: int, images: int) -> Iterator[str]:
    """The arithmetic of an estimate by FLOPs."""
    call, gradient = (_flops(value) for value in found.call)
    answer, both = (_flops(value) for value in found.answer)
    denoiser, classifier = f"{call}, with its input gradient {gradient}", f"{answer} and {both}"
    yield f"counted: a call of the denoiser is {denoiser}; one of the classifier is {classifier}"
    yield (
        f"the attack asks for {words_of_count(found.attacked)} purifications of {nfe} NFE, "
        f"the scores for {words_of_count(found.scored)}; together {_flops(found.flops)}"
    )


def gpu_table(name: str, kinds: Sequence[OnGpus], counts: Sequence[int]) -> Table:
    """The hours on several numbers of GPUs, for each precision."""
    columns = [f"{count} GPU" + ("s" if count > 1 else "") for count in counts]
    table = Table(
        "dtype", "TFLOP/s x share", "stored calls", "GB", *columns, box=box.SIMPLE_HEAD, title=f"hours on {name}"
    )
    for kind in kinds:
        hours = [_hours(kind.estimate.on(count)) for count in counts]
        speed = f"{kind.peak / 1e12:g} x {kind.share:g}"
        table.add_row(kind.dtype, speed, f"{kind.kept} of {kind.nfe}", f"{kind.memory / 1e9:.3g}", *hours)
    return table


def gpu_lines(own: OnGpus, counts: Sequence[int], source: str) -> Iterator[str]:
    """What the table means, and what limits it."""
    units = own.estimate.units
    yield f"not measured: the peak is that of the {source}"
    yield "the share of it is assumed; a network call whose activations are not stored is computed twice"
    idle = ", ".join(f"{100 * own.estimate.on(count).idle:.0f} % on {count}" for count in counts)
    yield f"idle at the end, of all GPU time: {idle}"
    yield f"{count_of(len(units), 'unit')}; the longest takes {clock(max(units))}, so that no number of GPUs takes less"


def _together(found: Estimate, starts: Sequence[float], workers: int) -> str:
    """The time on so many workers, from the start of this process on and, if there are several, of a worker."""
    return clock(found.on(workers).seconds + starts[0] + (starts[-1] if workers > 1 else 0.0))


def _share(seconds: float, found: Estimate) -> str:
    return f"{clock(seconds)}, {100 * seconds / max(found.seconds, 1e-9):.1f} %"


def _hours(plan: Schedule) -> str:
    return f"{plan.seconds / 3600:.3g}"


def _flops(value: float) -> str:
    size, unit = next((pair for pair in FLOPS if value >= pair[0]), FLOPS[-1])
    return f"{value / size:.3g} {unit}"
