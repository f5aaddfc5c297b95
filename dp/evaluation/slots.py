"""Lanes: an attack on any number of images in batches of a fixed size. One that is finished gives its lane to the next,
and no result depends on who shares the batch.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dp.attacks.base import Attack
from dp.attacks.state import cat, each, lane, where
from dp.defense.defended import Defended
from dp.defense.interface import Defense
from dp.evaluation.judge import Judge
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel


@dataclass
class Fate:
    """What became of one image."""

    x_adv: Tensor | None = None  # (C,H,W) its worst point by the judge or the attack's own choice, as admitted
    distance: float = 0.0  # of that point, in the threat model's norm
    done: int = 0  # iterations
    looks: int = 0  # of the judge
    lost_at: int | None = None  # iterations done when the judge's rule first held
    seen: list[int] = field(default_factory=list)  # the judge's classes at that point
    worst: tuple[int, float] = (-1, 0.0)  # draws wrong and mean margin at that point
    state: Any = None  # the attack's, one row, between batches


@dataclass
class Lanes:
    """`attack` on `images` (any number), `lanes` at a time, `judge` looking on if there is one.

    `attacked(ids)`: the model for the images of a batch; `streams(stage, ids)`: their noise, for the stages `attack`
    and `select`.
    """

    attack: Attack
    attacked: Callable[[Sequence[int]], Defense]
    scored: Defended
    threat: ThreatModel
    streams: Callable[[str, Sequence[int]], Streams]
    images: Subset
    lanes: int
    judge: Judge | None = None
    ties: str = "softmax"

    def run(self, on_step: Callable[[int, int], None]) -> list[Fate]:
        """The fates of all images, in their order; `on_step(mean iterations done, steps)` after every step."""
        self.fates = [Fate() for _ in self.images.ids]
        alive, begin = list(range(len(self.fates))), 0
        for end in self.attack.phase_ends:
            alive, begin = self._phase(alive, begin, end, on_step), end
        if self.judge is None:  # the attack's last word
            for first in range(0, len(alive), self.lanes):
                here = alive[first : first + self.lanes]
                for k, x_adv, distance in zip(here, *self._admitted(here), strict=False):
                    self.fates[k].x_adv, self.fates[k].distance = x_adv.clone(), distance
        for fate in self.fates:
            fate.state = None
        return self.fates

    def _phase(self, images: list[int], begin: int, end: int, on_step: Callable[[int, int], None]) -> list[int]:
        """Take `images` from iteration `begin` to `end`; those that are still to be attacked then.

        Lanes are refilled only where the judge is due, so that one call of it serves all lanes.
        """
        waiting, active, through = deque(images), [], []
        while waiting or active:
            if waiting and self._aligned(active, begin):
                entering = [waiting.popleft() for _ in range(min(len(waiting), self.lanes - len(active)))]
                if entering and begin == 0:
                    self._begin(entering)
                active += entering
            going = [k for k in active if not self._retired(k) and self.fates[k].done < end]
            if going:
                self._step(going)
                due = [k for k in going if self._due(self.fates[k].done, begin, end)]
                if due:
                    self._look(going, due)
                done = sum(self.attack.steps if self._retired(k) else f.done for k, f in enumerate(self.fates))
                on_step(done // len(self.fates), self.attack.steps)
            for k in active:
                if self._retired(k):
                    self.fates[k].state = None
                elif self.fates[k].done == end:
                    self.fates[k].state = each(torch.clone, self.fates[k].state)  # lets go of its batch
                    through.append(k)
            active = [k for k in going if not self._retired(k) and self.fates[k].done < end]
        return sorted(through)

    def _due(self, done: int, begin: int, end: int) -> bool:
        return self.judge is not None and ((done - begin) % self.judge.every == 0 or done == end)

    def _aligned(self, active: list[int], begin: int) -> bool:
        every = self.judge.every if self.judge else 1
        return all((self.fates[k].done - begin) % every == 0 for k in active)

    def _retired(self, k: int) -> bool:
        return self.judge is not None and self.judge.retire and self.fates[k].lost_at is not None

    def _has_chosen(self, done: int) -> bool:
        """Whether the attack has ended with a point that it chose itself: then the judge, whose few draws have compared
        it with earlier ones, leaves it at that, unless its looks are the verdict.
        """
        assert self.judge is not None
        return done == self.attack.steps and self.attack.selection_samples > 0 and not self.judge.in_loop

    def _batch(self, images: list[int]) -> tuple[list[int], Tensor, Tensor, list[int]]:
        """Positions, x, y and ids of a full batch, the first image repeated where lanes are empty."""
        lanes = [*images, *[images[0]] * (self.lanes - len(images))]
        return lanes, self.images.x[lanes], self.images.y[lanes], self.images.ids[lanes].tolist()

    def _begin(self, entering: list[int]) -> None:
        _, x, y, ids = self._batch(entering)
        state = self.attack.start(self.attacked(ids), x, y, self.threat, self.streams("attack", ids).draw(0))
        self._keep(entering, state)
        if self.judge is not None:
            self._look(entering, entering)

    def _step(self, going: list[int]) -> None:
        lanes, x, y, ids = self._batch(going)
        state = cat([self.fates[k].state for k in lanes])
        rng = self.streams("attack", ids).draw([1 + self.fates[k].done for k in lanes])
        self._keep(going, self.attack.step(self.attacked(ids), state, x, y, self.threat, rng))
        for k in going:
            self.fates[k].done += 1

    def _keep(self, images: list[int], state: Any) -> None:
        for at, k in enumerate(images):
            self.fates[k].state = lane(state, at)

    def _admitted(self, images: list[int]) -> tuple[Tensor, list[float]]:
        """A full batch of the images' candidates as the threat model admits them, and their distances."""
        lanes, x, _, _ = self._batch(images)
        state = cat([self.fates[k].state for k in lanes])
        if self.judge is not None:
            running = torch.tensor([self.fates[k].done < self.attack.steps for k in lanes])
            state = where(running, self.attack.current(state), state)
        points, distances = self.threat.admit(state, x)
        return points, distances.tolist()

    def _look(self, going: list[int], due: list[int]) -> None:
        """The judge sees a full batch; its word counts for the images that are due."""
        assert self.judge is not None
        lanes, _, y, ids = self._batch(going)
        points, distances = self._admitted(going)
        at = [self.fates[k].done for k in lanes]
        look = self.judge.look(self.scored, points, y, self.streams("select", ids), at, self.ties)
        for row, k in enumerate(going):
            if k not in due:
                continue
            fate, lost = self.fates[k], bool(look.lost[row])
            worse, fate.looks = (int(look.wrong[row]), float(look.margin[row])), fate.looks + 1
            if worse > fate.worst or (fate.lost_at is None and (lost or self._has_chosen(fate.done))):
                fate.worst, fate.seen = worse, look.classes[:, row].tolist()
                fate.x_adv, fate.distance = points[row].clone(), distances[row]
            if lost and fate.lost_at is None:
                fate.lost_at = fate.done
