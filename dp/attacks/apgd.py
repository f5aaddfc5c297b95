"""APGD (Croce and Hein 2020, arXiv 2003.01690, Algorithm 1), with every decision taken on the mean over EOT samples."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dp.attacks.base import Attack, Start, Stream
from dp.attacks.selection import strongest
from dp.attacks.state import where
from dp.attacks.target import check_target, targets_of
from dp.defense.interface import Defense
from dp.objectives import LEAST_CLASSES, LOSSES, Loss, check_classes, margin, with_margin
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel
from dp.transfer import sent

ALPHA = 0.75  # share of the gradient step in an update; the rest is momentum (the paper's alpha)


class State(NamedTuple):
    """Where APGD stands between two iterations."""

    x_adv: Tensor  # (B,C,H,W) what would be returned now
    chosen: Tensor  # (B,C,H,W) the strongest point of the finished runs; before that, the first start
    x: Tensor  # (B,C,H,W) the next point
    before: Tensor  # (B,C,H,W) the point from which the step to x began
    top_x: Tensor  # (B,C,H,W) this run's point of the largest loss ...
    top_grad: Tensor  # (B,C,H,W) ... its gradient ...
    top: Tensor  # (B,) ... and its loss
    hard_x: Tensor  # (B,C,H,W) this run's point of the largest success, for APGD the margin ...
    hard: Tensor  # (B,) ... and that success
    last: Tensor  # (B,) loss at the last point
    top_then: Tensor  # (B,) `top` at the last checkpoint
    size: Tensor  # (B,) step size
    rises: Tensor  # (B,) int64: rises of the loss since the last checkpoint
    halved: Tensor  # (B,) bool: halved at the last checkpoint
    targets: Tensor  # (B,T) int64: wrong classes, likeliest first, or the one `target`; (B,0) without targets
    i: Tensor  # (B,) int64 on the CPU: points evaluated, over all runs


@dataclass(frozen=True)
class APGD(Attack):
    """`restarts` runs (`targeted`: as many for each of `targets` classes) of `iterations` updates, whose start is
    evaluated too; a call of `step` evaluates one point.

    `loss`: `ce`, `dlr` or `targeted` (DLR towards the likeliest wrong classes of the clean image). `rho`: share of
    rises below which the step is halved. After a run `confirm` fresh samples choose, by mean margin, among its point of
    largest loss, of largest margin, its last one and the strongest of the runs before (at first: the random start). So
    the returned image is never clean, and was not chosen by lucky samples.

    `target`: aim at one wrong class alone, `random` (drawn for each image) or `least_likely` (of least mean probability
    under the defense). With `loss: ce` the negative cross-entropy of that class is climbed, with `targeted` the
    targeted DLR, and `targets` is not used; `dlr` has no target. Success is still the margin, and an image still counts
    as broken where it is misclassified as any class, unless the protocol says otherwise.
    """

    iterations: int
    eot: int
    loss: str = "ce"
    targets: int = 9
    restarts: int = 1
    confirm: int = 20
    rho: float = 0.75
    target: str | None = None

    def __post_init__(self):
        check_target(self.target)
        if self.target is not None and self.loss == "dlr":
            raise ValueError(f"need loss ce or targeted for a target, got loss='dlr' and target={self.target!r}")
        counts = (self.iterations, self.eot, self.targets, self.restarts, self.confirm)
        if min(counts) < 1:
            raise ValueError(
                f"need iterations, eot, targets, restarts, confirm >= 1, got {', '.join(map(str, counts))}"
            )
        if self.loss not in LOSSES or not 0 <= self.rho <= 1:
            raise ValueError(f"need loss among {', '.join(LOSSES)} and 0 <= rho <= 1, got {self.loss!r}, {self.rho}")

    @property
    def steps(self) -> int:
        """Each call evaluates one point."""
        return self.restarts * self._classes * (self.iterations + 1)

    @property
    def _classes(self) -> int:
        """How many target classes have runs of their own; 1 without a target."""
        return self.targets if self.loss == "targeted" and self.target is None else 1

    @property
    def samples(self) -> int:
        return self.eot

    @property
    def selection_samples(self) -> int:
        return self.confirm

    @property
    def phase_ends(self) -> tuple[int, ...]:
        """The ends of the runs, each after a choice among the run's points."""
        return tuple(range(self.iterations + 1, self.steps + 1, self.iterations + 1))

    def current(self, state: State) -> State:
        """The next point; after the choice that ends a run, what was chosen."""
        ended = (state.i > 0) & (state.i % (self.iterations + 1) == 0)
        return state._replace(x_adv=where(ended, state.x_adv, state.x))

    @property
    def least_classes(self) -> int:
        return LEAST_CLASSES[self.loss]

    def check_classes(self, classes: int) -> None:
        check_classes(self.loss, classes, self._classes)

    @property
    def objective(self) -> str:
        """What it climbs, in words."""
        aim = "" if self.target is None else f" to the {self.target.replace('_', ' ')} target"
        return f"APGD on {self.loss}{aim}"

    def says(self, through: str) -> str:
        what = f"{self.objective}, {self.steps} queries for the mean gradient of {self.eot} samples, through {through}"
        return f"{what}; {self.confirm} fresh samples choose what comes back"

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        targets = targets_of(self.target, model, x, y, rng, self.eot)
        if self.loss != "ce":
            logits = model.logits(x, rng.draw(Start.SURVEY), self.eot).mean(dim=0)  # (B,K)
            self.check_classes(logits.shape[1])
            if self.loss == "targeted" and self.target is None:
                wrong = logits.scatter(1, y.view(-1, 1), -torch.inf)
                targets = wrong.argsort(dim=1, descending=True, stable=True)[:, : self.targets]
        x0 = threat.noise(x, rng.draw(Start.POINT))  # linf: uniform; l2: on the sphere
        none, count = x.new_full((len(x),), -torch.inf), torch.zeros(len(x), dtype=torch.long, device=x.device)
        return State(
            x_adv=x0,
            chosen=x0,
            x=x0,
            before=x0,
            top_x=x0,
            top_grad=torch.zeros_like(x),
            top=none,
            hard_x=x0,
            hard=none,
            last=none,
            top_then=none,
            size=x.new_full((len(x),), 2 * threat.eps),
            rises=count,
            halved=count > 0,
            targets=targets,
            i=torch.zeros(len(x), dtype=torch.long),
        )

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        target = None
        if self.loss == "targeted" or self.target is not None:
            run = state.i // (self.iterations + 1) // self.restarts  # (B,) restarts of a target follow each other
            run = run.clamp(max=self._classes - 1)  # an image that is done may wait in the batch for others
            target = state.targets.gather(1, sent(run, x.device).view(-1, 1))[:, 0]
        values, grad = model.loss_gradient(state.x, y, rng.draw(Stream.QUERY), self.eot, with_margin(self.loss, target))
        return self.moved(model, state, values, grad, x, y, threat, rng)

    def moved(
        self,
        model: Defense,
        state: State,
        values: Tensor,
        grad: Tensor,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        rng: Streams,
        by: Loss = margin,
    ) -> State:
        """The step after the evaluation of state.x: `values` (B,2), the loss to climb and the measure of success, and
        the `grad` (B,C,H,W) to follow; `by`: what the selection samples compare.
        """
        k = state.i % (self.iterations + 1)  # (B,) updates made in this run
        first, last = sent(k == 0, x.device), k == self.iterations
        state = self._recorded(state, values[:, 0], values[:, 1], grad, first)
        state, base, grad = self._checked(state, grad, k, first, threat)
        size = state.size.view(-1, 1, 1, 1)
        z = threat.project(threat.ascend(base, grad, size), x)
        onwards = threat.project(base + ALPHA * (z - base) + (1 - ALPHA) * (base - state.before), x)
        onwards = where(first, z, onwards)  # no momentum at the start
        chosen = state.chosen
        if bool(last.any()):
            points = [state.top_x, state.hard_x, state.x, state.chosen]
            best = strongest(model, points, y, rng.draw(Stream.SELECTION), self.confirm, by, last)
            chosen = where(last, best, chosen)
            onwards = where(last, threat.noise(x, rng.draw(Stream.RESTART)), onwards)
        ended = (state.i >= self.iterations + 1) | last  # some run has ended with a choice
        x_adv = where(ended, chosen, state.hard_x)
        return state._replace(x_adv=x_adv, chosen=chosen, x=onwards, before=base, i=state.i + 1)

    def _recorded(self, state: State, loss: Tensor, success: Tensor, grad: Tensor, first: Tensor) -> State:
        """The state with the point x in the records of its run; where `first`, they begin anew."""
        higher, harder = first | (loss > state.top), first | (success > state.hard)
        rises = (state.rises + (loss > state.last)).masked_fill(first, 0)
        return state._replace(
            top_x=where(higher, state.x, state.top_x),
            top_grad=where(higher, grad, state.top_grad),
            top=where(higher, loss, state.top),
            hard_x=where(harder, state.x, state.hard_x),
            hard=where(harder, success, state.hard),
            last=loss,
            rises=rises,
        )

    def _checked(
        self, state: State, grad: Tensor, k: Tensor, first: Tensor, threat: ThreatModel
    ) -> tuple[State, Tensor, Tensor]:
        """The state with its step size, and the point and the gradient from which to go on."""
        gap = sent(torch.tensor(gaps(self.iterations))[k], grad.device)  # (B,), 0: no checkpoint
        size = state.size.masked_fill(first, 2 * threat.eps)
        then = where(first, state.top, state.top_then)
        # Differs from the letter of condition 2, as the authors' code does: it never holds at the first checkpoint.
        halved = state.halved | first
        check = gap > 0
        halve = check & ((state.rises <= self.rho * gap) | (~halved & (state.top <= then)))
        base, grad = where(halve, state.top_x, state.x), where(halve, state.top_grad, grad)
        # Rises are counted along the points in order, as in the authors' code, also across a jump to the best point.
        state = state._replace(
            size=where(halve, size / 2, size),
            halved=where(check, halve, halved),
            top_then=where(check, state.top, then),
            rises=state.rises.masked_fill(check, 0),
        )
        return state, base, grad


def gaps(iterations: int) -> list[int]:
    """For each count of updates 0..iterations: if it is a checkpoint, the updates since the one before, else 0.

    The first after 22 % of the iterations, then 3 % fewer each time down to 6 %, all rounded down, at least 1 (Croce
    and Hein 2020, Section 3; for 100: 22, 41, 57, 70, 80, 87, 93, 99).
    """
    gap, least, less = (max(percent * iterations // 100, 1) for percent in (22, 6, 3))
    lengths, checkpoint = [0] * (iterations + 1), gap
    while checkpoint <= iterations:
        lengths[checkpoint] = gap
        gap = max(gap - less, least)
        checkpoint += gap
    return lengths
