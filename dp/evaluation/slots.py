"""Batch slots: an attack on any number of images, in batches of a fixed size.

When an image is finished, its slot is refilled with the next image. No result depends on the other images in a batch.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from dp.attacks.base import Attack
from dp.attacks.state import cat, each, slot, where
from dp.defense.defended import Defended
from dp.defense.interface import Defense
from dp.evaluation.judge import Judge
from dp.evaluation.loss_curve import Noted, Notes, Point, mean_point
from dp.evaluation.snapshot import OnSnapshot, Outcome, Packed, Snapshot, unpacked
from dp.evaluation.stages import Stage
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel

# Called with the mean number of iterations done, the attack's steps, and the mean point of the newest iteration.
OnStep = Callable[[int, int, Point], None]


Batch = tuple[list[int], Tensor, Tensor, list[int]]  # positions, x, y and ids


class Sub(IntEnum):
    """Sub-streams of an attack's noise."""

    START = 0
    STEP = 1  # of the first step; the numbers of later steps follow


@dataclass
class Slots:
    """Runs `attack` on any number of `images` in `width` batch slots.

    `attacked(ids)`: the attacked defense for the images of a batch. `streams(stage, ids)`: their noise, for the stages
    `ATTACK` and `SELECT`. `judge`: the in-loop evaluation, if there is one. `ties`: see `metrics.vote`.
    """

    attack: Attack
    attacked: Callable[[Sequence[int]], Defense]
    scored: Defended
    threat: ThreatModel
    streams: Callable[[Stage, Sequence[int]], Streams]
    images: Subset
    width: int
    judge: Judge | None = None
    ties: str = "softmax"
    _newest: tuple[list[int], Batch] | None = field(default=None, init=False)  # images, and the batch of them

    def run(
        self,
        on_step: OnStep,
        begun: Snapshot | None = None,
        on_snapshot: OnSnapshot = lambda snapshot: None,
    ) -> list[Outcome]:
        """The outcomes of all images, in their order.

        `on_step` is called after every step, and `on_snapshot` with what is needed to go on from there. `begun`: such a
        snapshot, to go on from.
        """
        at = begun or Snapshot.first(len(self.images.ids))
        self.outcomes = list(at.outcomes)
        while at.phase < len(self.attack.phase_ends):
            at = self._round(at, on_step)
            on_snapshot(at)
        if self.judge is None:  # the attack's own choice is returned
            for first in range(0, len(at.waiting), self.width):
                batch = list(at.waiting[first : first + self.width])
                for k, x_adv, distance in zip(batch, *self._feasible(batch), strict=False):
                    self._change(k).x_adv, self.outcomes[k].distance = x_adv.clone(), distance
        for k in range(len(self.outcomes)):
            self._change(k).state = None
        return self.outcomes

    def restored(self, saved: Packed) -> Snapshot:
        """The snapshot that was packed. Raises ValueError if it is not one of this attack and these images."""
        if len(saved.fields["outcomes"]) != len(self.images.ids):
            raise ValueError(f"need {len(self.images.ids)} images, got {len(saved.fields['outcomes'])}")
        x, y, ids = self.images.x[:1], self.images.y[:1], self.images.ids[:1].tolist()
        rng = self.streams(Stage.ATTACK, ids).draw(Sub.START)
        template = self.attack.start(self.attacked(ids), x, y, self.threat, rng)
        return unpacked(saved, template, self.images.x.device)

    def _round(self, at: Snapshot, on_step: OnStep) -> Snapshot:
        """One iteration of a batch: images enter free slots, are attacked, and leave at the end of the phase.

        Slots are refilled only when an in-loop evaluation is due, so that all slots are evaluated in one call.
        """
        begin, end = (0, *self.attack.phase_ends)[at.phase : at.phase + 2]
        waiting, active, done = list(at.waiting), list(at.active), list(at.done)
        entering: list[int] = []
        if waiting and self._aligned(active, begin):
            free = self.width - len(active)
            entering, waiting = waiting[:free], waiting[free:]
        active += entering
        for k in active:
            self._change(k)
        if entering and begin == 0:
            self._begin(entering)
        running = [k for k in active if not self._dropped(k) and self.outcomes[k].steps < end]
        if running:
            self._step(running)
            due = [k for k in running if self._due(self.outcomes[k].steps, begin, end)]
            if due:
                self._evaluate(running, due)
            self._report(running, on_step)
        for k in active:
            if self._dropped(k):
                self.outcomes[k].state = None
            elif self.outcomes[k].steps == end:
                self.outcomes[k].state = each(torch.clone, self.outcomes[k].state)  # frees its batch
                done.append(k)
        active = [k for k in running if not self._dropped(k) and self.outcomes[k].steps < end]
        if waiting or active:
            return Snapshot(at.phase, tuple(waiting), tuple(active), tuple(done), tuple(self.outcomes))
        return Snapshot(at.phase + 1, tuple(sorted(done)), (), (), tuple(self.outcomes))

    def _change(self, k: int) -> Outcome:
        """A copy of the outcome of image k in its place, to be changed: the one before belongs to a snapshot."""
        self.outcomes[k] = copy.copy(self.outcomes[k])
        return self.outcomes[k]

    def _report(self, running: list[int], on_step: OnStep) -> None:
        total = self.attack.steps
        steps = sum(total if self._dropped(k) else outcome.steps for k, outcome in enumerate(self.outcomes))
        on_step(steps // len(self.outcomes), total, mean_point([self.outcomes[k].curve[-1] for k in running]))

    def _due(self, steps: int, begin: int, end: int) -> bool:
        return self.judge is not None and ((steps - begin) % self.judge.every == 0 or steps == end)

    def _aligned(self, active: list[int], begin: int) -> bool:
        every = self.judge.every if self.judge else 1
        return all((self.outcomes[k].steps - begin) % every == 0 for k in active)

    def _dropped(self, k: int) -> bool:
        """True if the image is broken and its attack has stopped."""
        return self.judge is not None and self.judge.retire and self.outcomes[k].broken_at is not None

    def _has_chosen(self, steps: int) -> bool:
        """True if the attack has ended with a point of its own choice, and the in-loop evaluation yields to it."""
        assert self.judge is not None
        return steps == self.attack.steps and self.judge.yields_to(self.attack.selection_samples)

    def _batch(self, images: list[int]) -> Batch:
        """A full batch. The first image is repeated in empty slots. While the images stay, so does the batch: to gather
        it anew, a GPU would wait for the host.
        """
        if self._newest is None or self._newest[0] != images:
            slots = [*images, *[images[0]] * (self.width - len(images))]
            batch = slots, self.images.x[slots], self.images.y[slots], self.images.ids[slots].tolist()
            self._newest = list(images), batch
        return self._newest[1]

    def _begin(self, entering: list[int]) -> None:
        _, x, y, ids = self._batch(entering)
        rng = self.streams(Stage.ATTACK, ids).draw(Sub.START)
        self._store(entering, self.attack.start(self.attacked(ids), x, y, self.threat, rng))
        if self.judge is not None:
            self._evaluate(entering, entering)

    def _step(self, running: list[int]) -> None:
        slots, x, y, ids = self._batch(running)
        state = cat([self.outcomes[k].state for k in slots])
        rng = self.streams(Stage.ATTACK, ids).draw([Sub.STEP + self.outcomes[k].steps for k in slots])
        model, notes = self.attacked(ids), Notes(self.width)
        asked = model if self.attack.batch_bound else Noted(model, notes)  # a package asks about parts of a batch
        self._store(running, self.attack.step(asked, state, x, y, self.threat, rng))
        for k, point in zip(running, notes.points(), strict=False):
            self.outcomes[k].steps += 1
            self.outcomes[k].curve += (point,)

    def _store(self, images: list[int], state: Any) -> None:
        for position, k in enumerate(images):
            self.outcomes[k].state = slot(state, position)

    def _feasible(self, images: list[int]) -> tuple[Tensor, list[float]]:
        """The points of a full batch, projected into the threat model, and their distances."""
        slots, x, _, _ = self._batch(images)
        state = cat([self.outcomes[k].state for k in slots])
        if self.judge is not None:
            running = torch.tensor([self.outcomes[k].steps < self.attack.steps for k in slots])
            state = where(running, self.attack.current(state), state)
        points, distances = self.threat.admit(state, x)
        return points, distances.tolist()

    def _evaluate(self, running: list[int], due: list[int]) -> None:
        """Evaluate a full batch in-loop, and record the result of the images that are due."""
        assert self.judge is not None
        slots, _, y, ids = self._batch(running)
        points, distances = self._feasible(running)
        steps, rng = [self.outcomes[k].steps for k in slots], self.streams(Stage.SELECT, ids)
        record = self.judge.evaluate(self.scored, points, y, rng, steps, self.ties)
        for row, k in enumerate(running):
            if k not in due:
                continue
            outcome, broken = self.outcomes[k], bool(record.broken[row])
            value, outcome.evaluations = (int(record.wrong[row]), float(record.margin[row])), outcome.evaluations + 1
            if value > outcome.worst or (outcome.broken_at is None and (broken or self._has_chosen(outcome.steps))):
                outcome.worst, outcome.classes = value, record.classes[:, row].tolist()
                outcome.x_adv, outcome.distance = points[row].clone(), distances[row]
            if broken and outcome.broken_at is None:
                outcome.broken_at = outcome.steps
