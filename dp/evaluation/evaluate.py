"""The loop: attack an image, then score it with fresh samples of the defense. An attack never scores itself."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dp.attacks.base import Attack
from dp.attacks.null import Null
from dp.defense.defended import Defended
from dp.defense.interface import Defense
from dp.defense.known_noise import KnownNoise
from dp.evaluation.draws import decided, fresh_samples
from dp.evaluation.judge import Judge
from dp.evaluation.loss_curve import padded
from dp.evaluation.rows import Group, Row, Unit
from dp.evaluation.slots import OnStep, Slots
from dp.evaluation.snapshot import OnSnapshot, Outcome, Packed, Snapshot
from dp.evaluation.stages import Stage
from dp.repeatable import noted
from dp.rng import Streams
from dp.statistics import metrics
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel

MOST_VOTES = 1000  # the curves over m of n samples count subsets, whose number must be a float


class Arm(NamedTuple):
    """A condition of the experiment: the defense, the undefended classifier, or the null control.

    The attack differentiates `attacked`, and the rows are scores of `scored`. Both are the same object unless the
    attack uses another gradient mode.
    """

    attacked: Defended
    scored: Defended
    attack: Attack


@dataclass(frozen=True)
class Evaluation:
    """Everything that a run attacks and scores.

    `arms`: the conditions by name, `defended`, `undefended`, `null`. `votes`: the number of fresh samples that score an
    image. `lanes`: the number of batch slots; so many images share each call. The last batch is padded, so that an
    image's row never depends on the other images in its batch. `ties`: how a tied vote is broken, see `metrics.vote`.
    `judge`: the in-loop evaluation. `known_draws`: the attacker knows the noise that will score (DW-box). `window`:
    images per batch slot in a unit, if broken images are dropped; with 1 the slot of a dropped image stays empty.
    `rng`: the generator of all noise, see `Streams`.

    Raises ValueError for settings that do not fit together, and for images outside [0,1].
    """

    subset: Subset
    arms: dict[str, Arm]
    threat: ThreatModel
    seeds: Sequence[int]
    votes: int
    lanes: int
    ties: str = "softmax"
    device: str = "cpu"
    judge: Judge | None = None
    known_draws: bool = False
    window: int = 1
    rng: int = 1

    def __post_init__(self):
        check_counts(self.votes, self.lanes, self.seeds)
        if self.window < 1:
            raise ValueError(f"need window >= 1, got window={self.window}")
        if self.known_draws and any(arm.attack.batch_bound for arm in self.arms.values()):
            raise ValueError(
                "need an attack that names the image of each query, because the noise is known, got one of a package"
            )
        if self.ties not in metrics.TIES:
            raise ValueError(f"need ties {' or '.join(metrics.TIES)}, got ties={self.ties!r}")
        ids, x = self.subset.ids.tolist(), self.subset.x
        if len({*ids}) < len(ids):
            raise ValueError(f"need ids that tell the images apart, got {len({*ids})} ids for {len(ids)} images")
        bad = ~((x >= 0) & (x <= 1)).flatten(1).all(dim=1)  # NaN compares false
        if bool(bad.any()):
            raise ValueError(
                f"need images in [0, 1], got NaN or values outside in ids {self.subset.ids[bad].tolist()[:5]}"
            )

    @property
    def first(self) -> Subset:
        """The first image, on the device."""
        ids, x, y = self.subset.select(slice(0, 1))
        return Subset(ids, x.to(self.device), y.to(self.device))

    def plan(self, done: Iterable[tuple[str, int, int]] = (), begun: Iterable[Unit] = ()) -> list[Unit]:
        """The units that are not yet done, by seed and then by condition. `done`: (arm, seed, id) of finished rows.

        `begun`: units of an earlier start whose state is saved. Those that are still to do come first, as they are.
        """
        taken, images, units = set(done), set(self.subset.ids.tolist()), []
        for unit in begun:
            rows = {(unit.arm, unit.seed, i) for i in unit.ids}
            ours = unit.arm in self.arms and unit.seed in self.seeds and images.issuperset(unit.ids)
            if ours and taken.isdisjoint(rows):
                units.append(unit)
                taken |= rows
        for seed in self.seeds:
            for arm in self.arms:
                left = [i for i in self.subset.ids.tolist() if (arm, seed, i) not in taken]
                size = self.lanes * (self.window if self._refills(arm) else 1)
                units += [Unit(arm, seed, tuple(left[k : k + size])) for k in range(0, len(left), size)]
        return units

    def of_shard(self, part: int, parts: int, workers: int) -> "Evaluation":
        """The evaluation of the `part`-th of `parts` shares of the images, counted from 1.

        Its window is smaller if there are few images, so that every worker has work.
        """
        subset = self.subset.select(slice(part - 1, None, parts))
        return replace(self, subset=subset, window=max(1, min(self.window, len(subset.ids) // (self.lanes * workers))))

    def restored(self, unit: Unit, saved: Packed) -> Snapshot:
        """The saved state of a unit's attack. Raises ValueError if it does not fit the attack."""
        return self._slots(unit, self._images(unit)).restored(saved)

    def run(
        self,
        unit: Unit,
        on_step: OnStep = lambda step, steps, point: None,
        begun: Snapshot | None = None,
        on_snapshot: OnSnapshot = lambda snapshot: None,
    ) -> Group:
        """Attack and score the images of a unit.

        `on_step` is called after every iteration, and `on_snapshot` with what is needed to go on from there. `begun`:
        such a snapshot, to go on from. Raises ValueError if an attacked image or a logit is not finite.
        """
        start_time, before = time.perf_counter(), 0.0 if begun is None else begun.seconds
        arm, null, images = self.arms[unit.arm], unit.arm == "null", self._images(unit)

        def keep(snapshot: Snapshot) -> None:
            on_snapshot(snapshot._replace(seconds=before + time.perf_counter() - start_time))

        unrepeatable: set[str] = set()
        with noted(unrepeatable):
            outcomes = self._slots(unit, images).run(on_step, begun, keep)
            x_adv = torch.stack([outcome.x_adv for outcome in outcomes])  # pyright: ignore[reportCallIssue, reportArgumentType]
            if not bool(torch.isfinite(x_adv).all()):
                raise ValueError(f"need finite attacked images, got NaN from {type(arm.attack).__name__}")
            clean = None if null else self._score(arm.scored, images.x, unit, Stage.CLEAN)
            # The null control has its own scoring samples, so that they too are independent of its selection samples.
            adv = self._score(arm.scored, x_adv, unit, Stage.NULL_ADV if null else Stage.ADV)
        rows = [
            self._row(unit, k, int(images.y[k]), None if clean is None else clean[k], adv[k], outcomes[k])
            for k in range(len(unit.ids))
        ]
        spent, curves = before + time.perf_counter() - start_time, padded([outcome.curve for outcome in outcomes])
        return Group(unit, rows, x_adv.cpu(), clean, adv, spent, curves, tuple(sorted(unrepeatable)))

    def release(self) -> None:
        """Free the memory of all networks, because other processes run the units. From now on it can only plan."""
        for arm in self.arms.values():
            for model in (arm.attacked, arm.scored):
                model.to("meta")

    def _refills(self, arm: str) -> bool:
        return self.judge is not None and self.judge.retire and not self.arms[arm].attack.batch_bound

    def _images(self, unit: Unit) -> Subset:
        """The unit's images, on the device."""
        position = {i: k for k, i in enumerate(self.subset.ids.tolist())}
        images = self.subset.select(torch.tensor([position[i] for i in unit.ids]))
        return Subset(images.ids, images.x.to(self.device), images.y.to(self.device))

    def _slots(self, unit: Unit, images: Subset) -> Slots:
        """The attack on the unit's images, in batch slots. Every iteration has noise of its own."""
        arm = self.arms[unit.arm]
        stages = {stage: stage for stage in (Stage.ATTACK, Stage.SELECT, Stage.ADV)}
        if unit.arm == "null":
            stages = {Stage.ATTACK: Stage.NULL, Stage.SELECT: Stage.NULL_SELECT, Stage.ADV: Stage.NULL_ADV}

        def streams(stage: Stage, ids: Sequence[int]) -> Streams:
            return Streams(ids, unit.seed, stages[stage], self.rng)

        def attacked(ids: Sequence[int]) -> Defense:
            return KnownNoise(arm.attacked, streams(Stage.ADV, ids), self.votes) if self.known_draws else arm.attacked

        return Slots(
            attack=arm.attack,
            attacked=attacked,
            scored=arm.scored,
            threat=self.threat,
            streams=streams,
            images=images,
            width=self.lanes,
            judge=self.judge,
            ties=self.ties,
        )

    def _score(self, model: Defended, x: Tensor, unit: Unit, stage: Stage) -> Tensor:
        return fresh_samples(model, x, unit.ids, unit.seed, stage, samples=self.votes, width=self.lanes, rng=self.rng)

    def _row(self, unit: Unit, k: int, label: int, clean: Tensor | None, adv: Tensor, outcome: Outcome) -> Row:
        by_adv, adv_tied = decided(adv, self.ties)
        by_clean, clean_tied = (dict.fromkeys(by_adv), False) if clean is None else decided(clean, self.ties)
        decisions = {f"clean_{rule}": c for rule, c in by_clean.items()}
        decisions |= {f"adv_{rule}": c for rule, c in by_adv.items()}
        return Row(
            arm=unit.arm,
            seed=unit.seed,
            id=unit.ids[k],
            label=label,
            clean=[] if clean is None else clean.argmax(dim=1).tolist(),
            adv=adv.argmax(dim=1).tolist(),
            ties=int(clean_tied) + int(adv_tied),
            seen=outcome.classes,
            looks=outcome.evaluations,
            lost_at=outcome.broken_at,
            iterations=outcome.steps,
            distance=outcome.distance,
            nfe=self.arms[unit.arm].scored.nfe,
            **decisions,  # pyright: ignore[reportArgumentType]
        )


def check_counts(votes: int, lanes: int, seeds: Sequence[int]) -> None:
    """Raises ValueError unless `votes` and `lanes` are whole numbers >= 1, and `seeds` different whole numbers."""
    counts = (votes, lanes, *(seeds if isinstance(seeds, Sequence) else (None,)))
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in counts):
        raise ValueError(f"need whole votes and lanes and a list of seeds, got {votes}, {lanes}, {seeds}")
    if votes > MOST_VOTES:
        raise ValueError(f"need votes <= {MOST_VOTES}, got {votes}: of more samples there are too many subsets")
    if votes < 1 or lanes < 1 or not seeds:
        raise ValueError(f"need votes >= 1, lanes >= 1 and a seed, got {votes}, {lanes}, {list(seeds)}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"need seeds that differ, got {list(seeds)}")


def null_control(attack: Attack, judge: Judge | None = None) -> Null:
    """The null control of an attack: random noise with as many candidates, selected as the attack's points are.

    Its candidates are valued by as many samples, and the choice among them is made by as many selection samples. With
    an in-loop evaluation the current candidate is evaluated as often as the attack's current point. Where the worst one
    counts, the null control selects nothing itself.
    """
    ends = attack.phase_ends if attack.steps else (1,)
    steps = max(1, attack.candidates if judge is None else attack.steps)
    ends = ends if steps == max(1, attack.steps) else (steps,)
    if judge is not None and not judge.yields_to(attack.selection_samples):
        return Null(steps, attack.samples, "last", ends=ends)
    select = "best" if attack.keeps_best else "last"
    return Null(steps, attack.samples, select, attack.selection_samples, ends)


def evaluate(evaluation: Evaluation, done: Iterable[tuple[str, int, int]] = ()) -> Iterator[Group]:
    """The results of all units that are not `done`, one after another in this process."""
    for unit in evaluation.plan(done):
        yield evaluation.run(unit)
