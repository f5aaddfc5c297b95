"""The work of a run, counted before it starts: the attack's own code asks a stand-in for the defense that only counts.

The unit is one evaluation of the denoiser for one image.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dp.attacks.base import VALUES, Attack
from dp.defense.defended import Defended, brief
from dp.defense.interface import AuxiliaryLoss
from dp.diffusion.denoisers import Denoiser
from dp.evaluation.dry import dry_run
from dp.evaluation.evaluate import Arm, Evaluation
from dp.evaluation.rows import Unit
from dp.objectives import Loss, cross_entropy
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import BALLS, ThreatModel

BACKWARD = 1.1  # a backward pass to the input alone, in forward passes; measured on digits and CIFAR-10 sized networks
COUNTED = (*BALLS, "flow")  # norms of threat models that need no network
MOST_STEPS = 3000  # of an attack's own code
MOST_CALLS = 100_000  # of it to the stand-in; an attack that waits for a wrong answer would never end


class TooMany(RuntimeError):
    """An attack has made more than `MOST_CALLS` calls."""


class Rates(NamedTuple):
    """What one network evaluation of one image costs, in a unit of choice: a call of the denoiser and of the
    classifier, their backward pass to the input alone, and a call of the denoiser that is computed again.
    """

    denoiser: float
    classifier: float
    denoiser_backward: float
    classifier_backward: float
    again: float


class Price(NamedTuple):
    """What one sample of a defense costs: the purification, its backward pass, the whole forward pass and its own."""

    purify: float
    purify_backward: float
    forward: float
    backward: float
    most: float  # samples that are computed at most; without noise, when all are equal, those of one call


class Costs(NamedTuple):
    """The work for one image under one condition.

    `steps`: of the attack; `counted`: its work up to each of the first steps, from 0 on; `score`: that of scoring.
    """

    steps: int
    counted: tuple[float, ...]
    score: float

    def attack(self, step: int) -> float:
        """The work of the attack up to a step. A step that was not counted costs as much as those before on average."""
        last = len(self.counted) - 1
        mean = (self.counted[-1] - self.counted[0]) / max(1, last)
        return self.counted[min(step, last)] + mean * max(0, min(step, self.steps) - last)

    @property
    def total(self) -> float:
        """Attack and scoring."""
        return self.attack(self.steps) + self.score


Prices = Callable[[Defended], Price]


class Pricing:
    """The prices of defenses, found by a dry run on one image."""

    def __init__(self, one: Subset, rates: Rates):
        self.one, self.rates = one, rates

    def __call__(self, model: Defended) -> Price:
        nfe, draws, own = dry_run(model, self.one)
        rates, purify = self.rates, nfe - own
        back = rates.denoiser_backward * purify + rates.again * _again([model.denoiser], purify)
        through = 0.0 if model.bpda else back
        through += rates.denoiser_backward * own + rates.again * _again(model.classifier.modules(), own)
        return Price(
            purify=rates.denoiser * purify,
            purify_backward=back,
            forward=rates.denoiser * nfe + rates.classifier,
            backward=through + rates.classifier_backward,
            most=float("inf") if draws else model.draws_per_call,
        )


def _again(modules: Iterable[Any], calls: int) -> int:
    """How many of the calls of the denoiser among modules compute their activations twice."""
    denoisers = [m for m in modules if isinstance(m, Denoiser) and m.memory == "recompute"]
    return sum(max(0, calls - denoiser.recompute.keep) for denoiser in denoisers)


class Counting:
    """A defense that answers at once, never wrongly, and counts what its answers would have cost for one image."""

    def __init__(self, model: Defended, pricing: Prices, y: Tensor, classes: int, known: int | None):
        self.model, self.pricing, self.price = model, pricing, pricing(model)
        self.y, self.classes, self.known = y, classes, known
        self.spent, self.calls = [0.0], [0]  # shared by all gradient modes

    def gradient_mode(self, name: str) -> "Counting":
        return self.gradient_modes([name])

    def gradient_modes(self, names: Sequence[str]) -> "Counting":
        other = Counting(self.model.gradient_modes(names), self.pricing, self.y, self.classes, self.known)
        other.spent, other.calls = self.spent, self.calls
        return other

    def logits(self, x: Tensor, rng: Streams, samples: int) -> Tensor:
        self._count(self.price.forward, samples)
        return self._logits(self.y).expand(samples, -1, -1)

    def logits_of(
        self, queries: Sequence[tuple[int, int]], images: Sequence[Tensor], rng: Streams, samples: int
    ) -> Tensor:
        self._count(self.price.forward, samples, len(queries))
        return self._logits(self.y[[b for _, b in queries]]).expand(samples, -1, -1)

    def loss(self, x: Tensor, y: Tensor, rng: Streams, samples: int, loss: Loss = cross_entropy) -> Tensor:
        self._count(self.price.forward, samples)
        return loss(self._logits(y), y)

    def loss_gradient(
        self,
        x: Tensor,
        y: Tensor,
        rng: Streams,
        samples: int,
        loss: Loss = cross_entropy,
        auxiliary: AuxiliaryLoss | None = None,
    ) -> tuple[Tensor, Tensor]:
        self._count(self.price.forward + self.price.backward, samples)
        return loss(self._logits(y), y), torch.ones_like(x)

    def purified(self, x: Tensor, rng: Streams, samples: int) -> Tensor:
        self._count(self.price.purify, samples)
        return x.expand(samples, *x.shape)

    def vjp(self, x: Tensor, rng: Streams, which: Sequence[int], direction: Tensor) -> Tensor:
        self._count(self.price.purify + self.price.purify_backward, 1)
        return direction

    def _count(self, cost: float, samples: int, queries: int = 1) -> None:
        self.calls[0] += 1
        if self.calls[0] > MOST_CALLS:
            raise TooMany(f"need an attack of at most {MOST_CALLS} calls, got more")
        samples = self.known or samples
        self.spent[0] += cost * queries * min(samples, self.price.most)

    def _logits(self, y: Tensor) -> Tensor:
        """(B,K): the label's is the largest by far, and no two are equal. Under noise no two calls agree: some attacks
        ask twice to see whether they do.
        """
        falling = -0.01 * torch.arange(self.classes, dtype=torch.float32, device=y.device)
        noisy = self.price.most == float("inf") and self.known is None
        return (4.0 + 0.01 * (self.calls[0] % 7) * noisy) * F.one_hot(y, self.classes) + falling


def in_evaluations(classifier: float) -> Rates:
    """The rates whose unit is one call of the denoiser. `classifier`: the cost of a call of the classifier, in that
    unit, beside what the classifier itself asks of a denoiser.
    """
    return Rates(1.0, classifier, BACKWARD, BACKWARD * classifier, 1.0)


def costs(evaluation: Evaluation, rates: Rates | None = None) -> dict[str, Costs]:
    """The work for one image under every condition, in the unit of the rates. By default the unit is one call of the
    denoiser, and the cost of the classifier is measured.
    """
    one = evaluation.first
    ratio = relative_cost(evaluation.arms["defended"].scored, one.x) if rates is None else 0.0
    return priced(evaluation, Pricing(one, rates or in_evaluations(ratio)))


def priced(evaluation: Evaluation, pricing: Prices) -> dict[str, Costs]:
    """The same at the prices of samples."""
    one = evaluation.first
    with torch.no_grad():
        classes = brief(evaluation.arms["defended"].scored)(one.x, Streams(one.ids, 0, "dry")).shape[1]
    return {name: _costs(evaluation, name, arm, pricing, one, classes) for name, arm in evaluation.arms.items()}


def relative_cost(model: Defended, x: Tensor) -> float:
    """The time of one evaluation of the classifier over that of the denoiser, for an image x (1,C,H,W). Times vary, so
    it is rounded: to tenths, and below 1 to one digit. 1 without a denoiser; 0 for a classifier whose own evaluations
    of a denoiser are counted.
    """
    if model.classifier_nfe:
        return 0.0
    if model.denoiser is None:
        return 1.0
    denoiser = model.denoiser
    now = time.process_time if x.device.type == "cpu" else time.perf_counter  # others may use the cores, too

    def seconds(call: Callable[[], Tensor]) -> float:
        times = []
        for _ in range(3):
            start_time = now()
            call().cpu()  # waits for the result
            times.append(now() - start_time)
        return min(times)

    with torch.no_grad():
        ratio = seconds(lambda: model.classifier(x)) / max(seconds(lambda: denoiser(x, 1.0)), 1e-9)
    return round(ratio, 1) if ratio >= 1 else float(f"{ratio:.1g}")


def slots(unit: Unit, lanes: int) -> int:
    """The batch slots that a unit fills; empty ones of its last batch take time, too."""
    return -(-len(unit.ids) // lanes) * lanes


def total(units: Sequence[Unit], work: Mapping[str, Costs], lanes: int) -> float:
    """The work of units."""
    return sum(slots(unit, lanes) * work[unit.arm].total for unit in units)


def _costs(evaluation: Evaluation, name: str, arm: Arm, pricing: Prices, one: Subset, classes: int) -> Costs:
    price = pricing(arm.scored)
    known = evaluation.votes if evaluation.known_draws else None
    attack, spent = _attack(arm, pricing, one, classes, known, evaluation), price.forward
    if evaluation.judge is not None:
        attack = _judged(attack, arm, evaluation, price)
    scorings = (1 if name == "null" else 2) * min(evaluation.votes, price.most)
    return Costs(arm.attack.steps, tuple(attack), scorings * spent)


def _attack(
    arm: Arm, pricing: Prices, one: Subset, classes: int, known: int | None, evaluation: Evaluation
) -> list[float]:
    """The work of an attack up to each of its first steps, from 0 on.

    Its own code, or that of its `countable`, is run on one image. Where that is not possible, a step counts as one
    gradient or one value. Any error of that code is such a case, because an attack may need a defense that is wrong
    sometimes.
    """
    attack, threat = arm.attack.countable(), evaluation.threat
    counting = Counting(arm.attacked, pricing, one.y, classes, known)
    steps = min(attack.steps, MOST_STEPS)
    if threat.norm in COUNTED:  # else its code asks more than a defense
        with contextlib.suppress(Exception):
            return _counted(attack, counting, one, threat, steps)
    each = counting.price.forward + (0.0 if attack.gradient == VALUES else counting.price.backward)
    each *= min(known or attack.samples, counting.price.most)
    return [each * k for k in range(steps + 1)]


def _counted(attack: Attack, counting: Counting, one: Subset, threat: ThreatModel, steps: int) -> list[float]:
    """The same by the attack's own code, which may raise anything. After too many calls it has the first steps."""
    rng = Streams(one.ids, 0, "dry")
    state = attack.start(counting, one.x, one.y, threat, rng.draw(0))
    found = [counting.spent[0]]
    for k in range(steps):
        try:
            state = attack.step(counting, state, one.x, one.y, threat, rng.draw(k + 1))
        except TooMany:
            if k == 0:
                raise
            break
        found.append(counting.spent[0])
    return found


def _judged(attack: list[float], arm: Arm, evaluation: Evaluation, price: Price) -> list[float]:
    """The same with the in-loop evaluations, at the start, after every so many steps of a phase, and at its end."""
    judge = evaluation.judge
    assert judge is not None
    each = price.forward * min(judge.screen or judge.draws, price.most)
    ends, begin, count, found = arm.attack.phase_ends, 0, 1, []
    for k, work in enumerate(attack):
        end = next((end for end in ends if k <= end), k)
        count += k > 0 and ((k - begin) % judge.every == 0 or k == end)
        begin = end if k == end else begin
        found.append(work + count * each)
    return found
