"""DiffHammer (Wang et al., NeurIPS 2024, Algorithm 1): an attack led by the samples that break together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dp.attacks.apgd import APGD
from dp.attacks.apgd import State as Run
from dp.attacks.base import Attack, Start, Stream
from dp.defense.interface import Defense
from dp.objectives import check_classes, cross_entropy, dlr, margin
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel
from dp.transfer import sent

LOSSES = {"cw": margin, "ce": cross_entropy, "dlr": dlr}


class State(NamedTuple):
    """Where DiffHammer stands between two iterations."""

    x_adv: Tensor  # (B,C,H,W) what would be returned now
    run: Run  # APGD's own
    mixed: Tensor  # (B,C,H,W) mean of the run's gradients so far
    i: Tensor  # (B,) int64 on the CPU: points evaluated, over all runs


@dataclass(frozen=True)
class DiffHammer(Attack):
    """A run of APGD on each of `losses` (`cw` is the margin), led by selected samples; a call of `step` evaluates one
    point on `eot` samples.

    E-step: `shared_weakness` weighs the samples, in at most `em_steps` rounds. M-step: the weighted mean of the losses'
    gradients in the purified images goes back through one representative sample (gradient grafting), and is mixed with
    the one before by (k+1)^-`decay` at a run's k-th point. Exact where the purification's derivative is the same in
    every sample. `sharpness`: slope of the sigmoid that turns a loss into a chance of success; the cross-entropy is
    never negative, so for it no chance is below 1/2 and the selection is mild, as published.

    The objective is the log of the mean chance over the samples, which ignores the samples that hold. After a run
    `confirm` fresh samples choose as in APGD, but by the mean chance of the margin: a mean margin would judge by the
    samples that were given up.
    Differs: the released code decides on the largest loss of a point's samples and reports those very samples,
    restarts only images that are broken in less than half of them, and stops at images broken in all.
    """

    iterations: int
    eot: int
    losses: Sequence[str] = ("cw", "ce", "dlr")
    sharpness: float = 5.0
    em_steps: int = 5
    decay: float = 0.5
    confirm: int = 20
    rho: float = 0.75

    def __post_init__(self):
        if not self.losses or not set(self.losses) <= set(LOSSES):
            raise ValueError(f"need losses among {', '.join(LOSSES)}, got {self.losses}")
        if (
            min(self.em_steps, self.apgd.steps) < 1 or self.sharpness <= 0 or self.decay < 0
        ):  # making it checks the rest
            given = f"{self.em_steps}, {self.sharpness}, {self.decay}"
            raise ValueError(f"need em_steps >= 1, sharpness > 0, decay >= 0, got {given}")

    @property
    def apgd(self) -> APGD:
        """The frame: a run per loss, whatever loss it names."""
        restarts = len(self.losses)
        return APGD(self.iterations, self.eot, restarts=restarts, confirm=self.confirm, rho=self.rho)

    @property
    def steps(self) -> int:
        return self.apgd.steps

    @property
    def samples(self) -> int:
        return self.eot

    @property
    def selection_samples(self) -> int:
        return self.confirm

    @property
    def criterion(self) -> str:
        return "selected samples, grafted on one, of"

    def current(self, state: State) -> State:
        return state._replace(x_adv=self.apgd.current(state.run).x_adv)

    @property
    def phase_ends(self) -> tuple[int, ...]:
        return self.apgd.phase_ends

    @property
    def least_classes(self) -> int:
        return 3 if "dlr" in self.losses else 2

    def says(self, through: str) -> str:
        what = f"DiffHammer on {', '.join(self.losses)}, {self.steps} queries of {self.eot} samples"
        how = f"the gradients of those that give way together grafted on one of them, through {through}"
        return f"{what}, {how}; {self.confirm} fresh samples choose what comes back"

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        if "dlr" in self.losses:
            check_classes("dlr", model.logits(x, rng.draw(Start.SURVEY), 1).shape[2])
        run = self.apgd.start(model, x, y, threat, rng)
        return State(x_adv=run.x_adv, run=run, mixed=torch.zeros_like(x), i=run.i)

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        x_now = state.run.x
        purified = model.purified(x_now, rng.draw(Stream.QUERY), self.eot)  # (N,B,...)
        run = state.i // (self.iterations + 1)
        run = run.clamp(max=len(self.losses) - 1)  # an image that is done may wait in the batch for others
        values, grads = self._behind(model, purified, y, sent(run, x.device), rng.draw(Stream.CLASSIFIER))
        weights, which = shared_weakness(values[..., 0], grads, threat, self.sharpness, self.em_steps)
        wanted = (weights.view(*weights.shape, 1, 1, 1) * grads).sum(dim=0)  # (B,...)
        grad = model.vjp(x_now, rng.draw(Stream.QUERY), which.tolist(), wanted)

        k = state.i % (self.iterations + 1)  # (B,) updates made in this run
        share = ((k + 1.0) ** -self.decay).to(grad).view(-1, 1, 1, 1)
        mixed = share * grad + (1 - share) * state.mixed
        moved = self.apgd.moved(model, state.run, self._chance(values), mixed, x, y, threat, rng, self._success)
        return State(x_adv=moved.x_adv, run=moved, mixed=mixed, i=moved.i)

    def _behind(self, model: Defense, purified: Tensor, y: Tensor, run: Tensor, rng: Streams) -> tuple[Tensor, Tensor]:
        """Of every purified image (N,B,...) the run's loss and the margin, (N,B,2), and the loss's gradient in it."""

        def columns(logits: Tensor, y: Tensor) -> Tensor:
            all_losses = torch.stack([LOSSES[name](logits, y) for name in self.losses], dim=1)
            return torch.stack([all_losses.gather(1, run.view(-1, 1))[:, 0], margin(logits, y)], dim=1)

        bare = model.gradient_mode("blind")
        parts = [bare.loss_gradient(x_hat, y, rng.draw(n), 1, columns) for n, x_hat in enumerate(purified)]
        return torch.stack([values for values, _ in parts]), torch.stack([grads for _, grads in parts])

    def _chance(self, values: Tensor) -> Tensor:
        """(N,B,M) losses -> (B,M) log of the mean chance over samples, up to a constant."""
        return F.logsigmoid(self.sharpness * values).logsumexp(dim=0)

    def _success(self, logits: Tensor, y: Tensor) -> Tensor:
        return torch.sigmoid(self.sharpness * margin(logits, y))


def shared_weakness(
    losses: Tensor, grads: Tensor, threat: ThreatModel, sharpness: float, em_steps: int
) -> tuple[Tensor, Tensor]:
    """Weights (N,B) of the samples, summing to 1, and a representative sample (B,) of those that one change d of the
    purified images, of length eps, would break together: sum_i sigma(s (L_i + d . g_i)), s the sharpness, is to be
    large (Eqs. 9, 11), for losses (N,B) and gradients (N,B,...).

    The representative is the sample whose own direction makes the sum largest. From that d on, q_i = sigma(...) and d
    along sum_i q_i g_i follow from each other as long as the sum rises; the weights are the last q.
    Differs: the released code never takes the new d, so that its 5 rounds equal 1; its d is 1 per pixel, not eps; and
    it finds the representative by elu in place of sigma.
    """
    flat = torch.zeros_like(grads[0])

    def logs(along: Tensor) -> Tensor:  # (N,B) log sigma: a sigmoid of -100 must not become a zero weight
        d = threat.ascend(flat, along, threat.eps)
        return F.logsigmoid(sharpness * (losses + (grads * d).flatten(2).sum(dim=2)))

    own = torch.stack([logs(g) for g in grads])  # (N of d, N of samples, B)
    which = own.logsumexp(dim=1).argmax(dim=0)
    log_q = own.gather(0, which.expand(1, *losses.shape))[0]
    for _ in range(em_steps):
        q = log_q.softmax(dim=0).view(*losses.shape, 1, 1, 1)
        new = logs((q * grads).sum(dim=0))
        log_q = torch.where(new.logsumexp(dim=0) > log_q.logsumexp(dim=0), new, log_q)
    return log_q.softmax(dim=0), which
