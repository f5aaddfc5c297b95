"""PGD with expectation over transformation (Madry et al. 2018, Athalye et al. 2018)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dp.attacks.base import Attack, Stream
from dp.attacks.target import check_target, targets_of
from dp.defense.interface import Defense
from dp.objectives import cross_entropy, targeted_cross_entropy
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel
from dp.transfer import sent


class State(NamedTuple):
    """Where PGD stands between two iterations."""

    x_adv: Tensor  # (B,C,H,W) what would be returned now
    x: Tensor  # (B,C,H,W) the iterate
    best: Tensor  # (B,) mean loss of x_adv over its samples
    mean: Tensor  # (B,C,H,W) sum of this run's unit gradients, decayed by the momentum; (B,0) without momentum
    target: Tensor  # (B,1) int64: the class that it aims at; (B,0) without a target
    i: Tensor  # (B,) int64 on the CPU: steps done


@dataclass(frozen=True)
class PGD(Attack):
    """Steps x <- project(x + step_size * direction(mean gradient over `eot` samples)), each step with samples
    of its own. `momentum` > 0: the direction is that of g <- momentum g + gradient / |gradient|_1 (Dong et al. 2018),
    which is also a mean over iterations and so less noisy.

    `step_size`: in [0,1] units; None means 2.5 eps / iterations. `select`: the `last` iterate, or the `best` by mean
    loss over the samples of a step, which never are the ones that score it. The start itself is no candidate; the last
    iterate costs one more forward pass. `restarts` > 1 keep the best of their results by that loss. `l2_step`:
    `gradient` (normalized), or `sign`, which the code of Lee and Kim and of the official release uses inside the l2
    ball (deviation 34).

    `target`: `random` (a wrong class drawn for each image) or `least_likely` (the class of least mean probability under
    the defense). The loss is then the negative cross-entropy of that class, so the attack minimizes the target's loss.
    An image still counts as broken where it is misclassified as any class, unless the protocol says otherwise.
    """

    iterations: int
    eot: int
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    select: str = "best"  # pyright: ignore[reportIncompatibleMethodOverride]
    l2_step: str = "gradient"
    momentum: float = 0.0
    target: str | None = None

    def __post_init__(self):
        check_target(self.target)
        if min(self.iterations, self.eot, self.restarts) < 1:
            raise ValueError(f"need iterations, eot, restarts >= 1, got {self.iterations}, {self.eot}, {self.restarts}")
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"need step_size > 0 or null for 2.5 eps / iterations, got step_size={self.step_size}")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"need 0 <= momentum <= 1, got momentum={self.momentum}")
        if self.select not in ("last", "best") or self.l2_step not in ("gradient", "sign"):
            raise ValueError(
                f"need select last or best and l2_step gradient or sign, got {self.select!r} and {self.l2_step!r}"
            )

    @property
    def steps(self) -> int:
        """Each call of `step` makes one candidate."""
        return self.iterations * self.restarts

    @property
    def samples(self) -> int:
        return self.eot

    @property
    def keeps_best(self) -> bool:
        """Of several restarts it keeps the best also where it returns last iterates."""
        return self.select == "best" or self.restarts > 1

    @property
    def candidates(self) -> int:
        """With `select: last` only the last iterates of several restarts are compared."""
        return self.restarts if self.select == "last" and self.restarts > 1 else self.steps

    @property
    def is_baseline(self) -> bool:
        return True

    def reach(self, threat: ThreatModel) -> float | None:
        if self.step_size is None or (threat.norm != "linf" and self.l2_step == "sign"):  # such a step is longer
            return None
        return self.iterations * self.step_size

    def width(self, threat: ThreatModel) -> float:
        return 2 * threat.eps if self.random_start else threat.eps

    def current(self, state: State) -> State:
        return state._replace(x_adv=state.x)

    def says(self, through: str) -> str:
        momentum = f" with momentum {self.momentum:g}" if self.momentum else ""
        aim = "" if self.target is None else f" to the {self.target.replace('_', ' ')} target"
        return (
            f"PGD{aim}, {self.steps} steps{momentum} along the mean gradient of {self.eot} samples, through {through}"
        )

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        x0 = threat.random_start(x, rng) if self.random_start else x
        best, i = x.new_full((len(x),), -torch.inf), torch.zeros(len(x), dtype=torch.long)
        mean = torch.zeros_like(x) if self.momentum else x.new_zeros(len(x), 0)
        target = targets_of(self.target, model, x, y, rng, self.eot)
        return State(x_adv=x0, x=x0, best=best, mean=mean, target=target, i=i)

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        at, x_adv, best = state.x, state.x_adv, state.best
        objective = cross_entropy if self.target is None else targeted_cross_entropy(state.target[:, 0])
        first, last = state.i % self.iterations == 0, (state.i + 1) % self.iterations == 0
        if bool((first & (state.i > 0)).any()):
            again = sent(first & (state.i > 0), x.device).view(-1, 1, 1, 1)
            at = torch.where(again, threat.random_start(x, rng.draw(Stream.RESTART)) if self.random_start else x, at)
        loss, grad = model.loss_gradient(at, y, rng.draw(Stream.QUERY), self.eot, objective)
        if self.select == "best":
            x_adv, best = _better(x_adv, best, at, loss, ~first)
        mean = state.mean
        if self.momentum:
            unit = grad / grad.abs().sum(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(grad.dtype).tiny)
            grad = mean = unit + self.momentum * torch.where(sent(first, x.device).view(-1, 1, 1, 1), 0, mean)
        size = 2.5 * threat.eps / self.iterations if self.step_size is None else self.step_size
        moved = at + size * grad.sign() if self.l2_step == "sign" else threat.ascend(at, grad, size)
        at = threat.project(moved, x)
        if self.select == "last" and self.restarts == 1:
            x_adv = at
        elif bool(last.any()):
            value = model.loss(at, y, rng.draw(Stream.SELECTION), self.eot, objective)
            x_adv, best = _better(x_adv, best, at, value, last)
        return state._replace(x_adv=x_adv, x=at, best=best, mean=mean, i=state.i + 1)


def _better(x_adv: Tensor, best: Tensor, at: Tensor, loss: Tensor, eligible: Tensor) -> tuple[Tensor, Tensor]:
    """The candidate `at` where it is eligible and its loss is the highest so far."""
    wins = (loss > best) & sent(eligible, loss.device)
    return torch.where(wins.view(-1, 1, 1, 1), at, x_adv), torch.where(wins, loss, best)
