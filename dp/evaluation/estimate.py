"""What a run costs, estimated before it: seconds of one worker for each condition, and for each unit of the queue."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dp.evaluation.evaluate import Evaluation
from dp.evaluation.rows import Unit
from dp.evaluation.schedule import Schedule, schedule
from dp.evaluation.work import Costs, slots, total


class Parts(NamedTuple):
    """Seconds of one worker for a condition: its attack and its scoring."""

    attack: float
    score: float


class Estimate(NamedTuple):
    """`parts`: by condition. `units`: the seconds of every unit, in the order of the queue."""

    parts: dict[str, Parts]
    units: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """All work, by one worker."""
        return sum(self.units)

    def on(self, workers: int) -> Schedule:
        """The time on several workers of this kind, and how long they wait."""
        return schedule(self.units, workers)


def estimate(evaluation: Evaluation, work: Mapping[str, Costs], per_second: float = 1.0) -> Estimate:
    """The estimate of a whole evaluation. `work`: what an image costs; `per_second`: how much of it a worker does."""
    units, lanes = evaluation.plan(), evaluation.lanes
    parts = {arm: _parts([unit for unit in units if unit.arm == arm], costs, lanes) for arm, costs in work.items()}
    return Estimate(
        {arm: Parts(attack / per_second, score / per_second) for arm, (attack, score) in parts.items()},
        tuple(total([unit], work, lanes) / per_second for unit in units),
    )


def _parts(units: Sequence[Unit], costs: Costs, lanes: int) -> Parts:
    images = sum(slots(unit, lanes) for unit in units)
    return Parts(images * costs.attack(costs.steps), images * costs.score)


class OnGpus(NamedTuple):
    """The estimate for GPUs of one kind in one precision. `peak`: FLOP/s of the data sheet; `share`: what is assumed of
    it. `kept`: network calls whose activations are stored, of `nfe`. `memory`: bytes.
    """

    dtype: str
    peak: float
    share: float
    kept: int
    nfe: int
    memory: float
    estimate: Estimate


class Counted(NamedTuple):
    """The arithmetic of an estimate by FLOPs. `call`, `answer`: FLOPs of the forward pass and with its input gradient,
    of one network evaluation and of one answer of the classifier. `purifications`: by the attack on the defense,
    and those that score. `flops`: of the run without any recomputation.
    """

    call: tuple[float, float]
    answer: tuple[float, float]
    attacked: float
    scored: float
    flops: float
