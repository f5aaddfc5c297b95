"""The loop: attack an image, then ask the defence about it with fresh draws. The harness judges, never the attack."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from dp import metrics
from dp.attacks import Attack
from dp.attacks.null import Null
from dp.datasets import Subset
from dp.defense import Defended
from dp.rng import Streams
from dp.threat import ThreatModel


class Row(TypedDict):
    """One image under one arm and seed. `clean`, `adv`: the class of every draw; `*_vote`: their plurality, ties broken
    as configured.
    """

    arm: str  # defended | undefended | null
    seed: int
    id: int
    label: int
    clean: list[int]  # empty under `null`, which shares the defended arm's
    clean_vote: int | None
    adv: list[int]
    adv_vote: int
    ties: int  # votes above that a count alone leaves tied
    distance: float  # of the attacked image, in the threat model's norm
    nfe: int  # denoiser evaluations of one scored purification


class Unit(NamedTuple):
    """Work that is done in one go: up to `lanes` images of one arm under one seed."""

    arm: str
    seed: int
    ids: tuple[int, ...]


class Group(NamedTuple):
    """What came of a unit: rows, attacked images (B,C,H,W), logits of every draw (B,draws,K; clean ones None under
    `null`).
    """

    unit: Unit
    rows: list[Row]
    x_adv: Tensor
    clean: Tensor | None
    adv: Tensor
    seconds: float


class Arm(NamedTuple):
    """`attacked` is what the attack differentiates, `scored` what is judged; the same object unless a surrogate is
    attacked.
    """

    attacked: Defended
    scored: Defended
    attack: Attack


@dataclass(frozen=True)
class Evaluation:
    """Everything a run judges. `lanes` images share each call, the last group padded, so that a row never depends on
    its company.
    """

    subset: Subset
    arms: dict[str, Arm]
    threat: ThreatModel
    seeds: Sequence[int]
    votes: int
    lanes: int
    ties: str = "softmax"
    device: str = "cpu"

    def __post_init__(self):
        counts = (self.votes, self.lanes, *(self.seeds if isinstance(self.seeds, Sequence) else (None,)))
        if not all(isinstance(v, int) for v in counts):
            raise ValueError(
                f"need whole votes and lanes and a list of seeds, got {self.votes}, {self.lanes}, {self.seeds}"
            )
        if self.votes < 1 or self.lanes < 1 or not self.seeds:
            raise ValueError(
                f"need votes >= 1, lanes >= 1 and a seed, got {self.votes}, {self.lanes}, {list(self.seeds)}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"need seeds that differ, got {list(self.seeds)}")
        if self.ties not in metrics.TIES:
            raise ValueError(f"need ties {' or '.join(metrics.TIES)}, got ties={self.ties!r}")
        x = self.subset.x
        bad = ~((x >= 0) & (x <= 1)).flatten(1).all(dim=1)  # NaN compares false
        if bool(bad.any()):
            raise ValueError(
                f"need images in [0, 1], got NaN or values outside in ids {self.subset.ids[bad].tolist()[:5]}"
            )

    def plan(self, done: Iterable[tuple[str, int, int]] = ()) -> list[Unit]:
        """The units still to do, given the (arm, seed, id) that are there already; the arms' order is the order of
        work.
        """
        done = set(done)
        units = []
        for seed in self.seeds:
            for arm in self.arms:
                todo = [i for i in self.subset.ids.tolist() if (arm, seed, i) not in done]
                units += [Unit(arm, seed, tuple(todo[k : k + self.lanes])) for k in range(0, len(todo), self.lanes)]
        return units

    def run(self, unit: Unit, on_step: Callable[[int, int], None] = lambda step, steps: None) -> Group:
        """Attack and judge the images of a unit; `on_step(steps done, steps)` after every attack iteration."""
        began = time.perf_counter()
        arm = self.arms[unit.arm]
        position = {i: k for k, i in enumerate(self.subset.ids.tolist())}
        lanes = [*unit.ids, *[unit.ids[-1]] * (self.lanes - len(unit.ids))]  # padded
        batch = self.subset.select(torch.tensor([position[i] for i in lanes]))
        x, y = batch.x.to(self.device), batch.y.to(self.device)
        null = unit.arm == "null"
        x_adv, distance = self._attack(arm, x, y, Streams(lanes, unit.seed, "null" if null else "attack"), on_step)
        clean = None if null else self._score(arm.scored, x, Streams(lanes, unit.seed, "clean"))
        # The null control is scored with draws of its own, as far from its selection as the attack's are.
        adv = self._score(arm.scored, x_adv, Streams(lanes, unit.seed, "null-adv" if null else "adv"))
        rows = [
            self._row(unit, k, int(y[k]), None if clean is None else clean[k], adv[k], distance[k], arm.scored.nfe)
            for k in range(len(unit.ids))
        ]
        real = slice(0, len(unit.ids))
        kept = None if clean is None else clean[real]
        return Group(unit, rows, x_adv[real].cpu(), kept, adv[real], time.perf_counter() - began)

    def _attack(
        self, arm: Arm, x: Tensor, y: Tensor, rng: Streams, on_step: Callable[[int, int], None]
    ) -> tuple[Tensor, list[float]]:
        """The attacked images as the threat model admits them, and their distances; every iteration gets streams of its
        own.
        """
        state = arm.attack.start(arm.attacked, x, y, self.threat, rng.draw(0))
        for i in range(arm.attack.steps):
            state = arm.attack.step(arm.attacked, state, x, y, self.threat, rng.draw(1 + i))
            on_step(i + 1, arm.attack.steps)
        x_adv, distance = self.threat.admit(state, x)
        if not bool(torch.isfinite(x_adv).all()):
            raise ValueError(f"need finite attacked images, got NaN from {type(arm.attack).__name__}")
        return x_adv, distance.tolist()

    def _score(self, model: Defended, x: Tensor, rng: Streams) -> Tensor:
        """(B,votes,K) logits on the CPU."""
        with torch.no_grad():
            logits = model.logits(x, rng, self.votes).transpose(0, 1).cpu()
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("need finite logits, got NaN or infinity: look at the weights, the dtype and the images")
        return logits

    def _row(self, unit: Unit, k: int, label: int, clean: Tensor | None, adv: Tensor, distance: float, nfe: int) -> Row:
        adv_vote, adv_tied = metrics.vote(adv.numpy(), self.ties)
        clean_vote, clean_tied = (None, False) if clean is None else metrics.vote(clean.numpy(), self.ties)
        return Row(
            arm=unit.arm,
            seed=unit.seed,
            id=unit.ids[k],
            label=label,
            clean=[] if clean is None else clean.argmax(dim=1).tolist(),
            clean_vote=clean_vote,
            adv=adv.argmax(dim=1).tolist(),
            adv_vote=adv_vote,
            ties=int(clean_tied) + int(adv_tied),
            distance=distance,
            nfe=nfe,
        )


def null_control(attack: Attack) -> Null:
    """Noise with as many candidates as the attack has steps, looked at and selected as the attack does it."""
    return Null(steps=max(1, attack.steps), eot=attack.eot, select=attack.select)


def evaluate(evaluation: Evaluation, done: Iterable[tuple[str, int, int]] = ()) -> Iterator[Group]:
    """All units in this process, one after the other."""
    for unit in evaluation.plan(done):
        yield evaluation.run(unit)
