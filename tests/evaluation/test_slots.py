"""Dropped images and refills: an image's outcome depends on no slot, order or batch, and the work saved is counted."""

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch

from dp.attacks.apgd import APGD
from dp.attacks.base import Attack
from dp.attacks.diffhammer import DiffHammer
from dp.attacks.pgd_eot import PGD
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.evaluation.evaluate import Evaluation
from dp.evaluation.judge import Judge
from dp.evaluation.slots import Slots
from dp.rng import Streams
from dp.runs.build import build
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel
from tests.attacks.test_apgd import jitter
from tests.helpers.compose import composed, small_budget


class State(NamedTuple):
    x_adv: torch.Tensor
    i: torch.Tensor


@dataclass(frozen=True)
class Raise(Attack):
    """Raises every pixel by .01 a step, plus a millionth of noise. `diary`: the iterations of the images that share a
    batch.
    """

    steps: int = 8  # pyright: ignore[reportIncompatibleMethodOverride]
    phase_ends: tuple[int, ...] = (8,)  # pyright: ignore[reportIncompatibleMethodOverride]
    selection_samples: int = 0  # pyright: ignore[reportIncompatibleMethodOverride]
    diary: list = field(default_factory=list)

    @property
    def samples(self):
        return 1

    def says(self, through):
        return "raises"

    def start(self, model, x, y, threat, rng):
        return State(x, torch.zeros(len(x), dtype=torch.long))

    def step(self, model, state, x, y, threat, rng):
        self.diary.append(state.i.tolist())
        noise = 1e-6 * rng.uniform_like(x[:, :, :1, :1])
        return State(threat.project(state.x_adv + 0.01 + noise, x), state.i + 1)


class Falls:
    """Image k is wrong once its mean has risen by .01 * (k + 1) above its start, which its own pixels encode."""

    def logits(self, x, rng, samples):
        rise = x[:, 0, 0, 1] - x[:, 0, 0, 0].clamp(max=0.0)  # second pixel
        level = 0.01 * (x[:, 0, 1, 1] - x[:, 0, 0, 1]) / 0.001  # third minus second: k + 1, in thousandths
        wrong = rise > level - 0.005
        one = torch.stack([~wrong, wrong], dim=1).float()
        return one.expand(samples, -1, -1)


def images(count: int) -> Subset:
    x = torch.zeros(count, 1, 2, 2)
    x[:, 0, 1, 1] = 0.001 * torch.arange(1, count + 1)
    return Subset(torch.arange(100, 100 + count), x, torch.zeros(count, dtype=torch.long))


def slots(subset: Subset, lanes: int, every: int = 1, retire: bool = True, attack=None, in_loop: bool = False) -> Slots:
    attack = attack or Raise(8, (4, 8))
    judge = Judge(every, draws=2, rule="all", retire=retire, in_loop=in_loop)
    model, threat = Falls(), ThreatModel("linf", 0.5)
    streams = lambda stage, ids: Streams(ids, 0, stage)  # noqa: E731
    parts = (attack, lambda ids: model, model, threat, streams, subset, lanes, judge)
    return Slots(*parts)  # pyright: ignore[reportArgumentType]


def outcomes(*args, **kwargs):
    return slots(*args, **kwargs).run(lambda *_: None)


def test_an_image_is_broken_when_the_closed_form_says():
    """Image k is broken after k + 1 steps; those beyond the last step never are."""
    found = outcomes(images(12), lanes=4)
    assert [f.broken_at for f in found] == [1, 2, 3, 4, 5, 6, 7, 8, None, None, None, None]
    assert [f.steps for f in found] == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8]
    assert [f.evaluations for f in found] == [f.steps + 1 for f in found]
    assert all(f.classes == ([1, 1] if f.broken_at else [0, 0]) for f in found)


@pytest.mark.parametrize("retire", [True, False])
def test_the_point_that_an_attack_has_chosen_is_kept(retire):
    """Of an image that is never broken all points are equal for the judge, and it keeps the first. The attack's last
    point comes back where the attack has chosen it by as many selection samples as the judge has, and the judge only
    selects. A broken image keeps the point at which it was broken.
    """
    subset = images(12)
    rises = {}
    for name, confirm, in_loop in (("judge", 0, False), ("attack", 2, False), ("verdict", 3, True), ("few", 1, False)):
        found = outcomes(subset, 4, retire=retire, attack=Raise(8, (4, 8), selection_samples=confirm), in_loop=in_loop)
        rises[name] = [round(100 * float((f.x_adv - x).mean())) for f, x in zip(found, subset.x, strict=True)]
    assert rises["judge"] == rises["verdict"] == rises["few"] == [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0]
    assert rises["attack"] == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("lanes", [1, 3, 5, 12, 20])
def test_outcomes_do_not_depend_on_slots_or_order(lanes, every):
    subset = images(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(lanes))
    base, other = outcomes(subset, 12, every), outcomes(subset.select(order), lanes, every)
    for k, at in enumerate(order.tolist()):
        for name in ("x_adv", "steps", "evaluations", "broken_at", "classes", "worst"):
            mine, theirs = getattr(other[k], name), getattr(base[at], name)
            assert torch.equal(mine, theirs) if name == "x_adv" else mine == theirs, name


class Color(torch.nn.Module):
    """Color images through a convolution whose weights, as in runs, are channels_last."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Linear(8, 4)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x):
        return self.out(10 * torch.relu(self.conv(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize("attack", [PGD(4, 2), APGD(4, 2, confirm=2), DiffHammer(2, 2, ["cw"], confirm=2)])
def test_color_images_keep_their_bits_through_refills(attack):
    """Images of 3 channels in channels_last, as in runs, end the same in one batch and where some enter late."""
    net = Color()
    model = Defended(jitter, None, Classifier(net), draws_per_call=2)
    x = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)
    net.out.bias.data -= net(x).detach().mean(dim=0)  # so that no class is every image's
    subset = Subset(torch.arange(9), x, model.classifier(x).argmax(1))
    streams = lambda stage, ids: Streams(ids, 0, stage)  # noqa: E731
    threat, judge, found = ThreatModel("linf", 0.03), Judge(1, draws=2, rule="any"), []
    for lanes in (9, 4):  # none enters late, and some do
        parts = (attack, lambda ids: model, model, threat, streams, subset, lanes, judge)
        found.append(Slots(*parts).run(lambda *_: None))  # pyright: ignore[reportArgumentType]
    assert 0 < sum(outcome.broken_at is not None for outcome in found[0]) < 9
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.x_adv, other.x_adv)
        assert (one.worst, one.broken_at, one.steps) == (other.worst, other.broken_at, other.steps)


def test_no_batch_mixes_the_phases_of_an_attack():
    attack = Raise(8, (4, 8))
    outcomes(images(30), lanes=4, every=2, attack=attack)
    assert all(max(i) < 4 or min(i) >= 4 for i in attack.diary)
    assert any(len(set(i)) > 1 for i in attack.diary)  # slots were refilled


def test_refill_saves_the_steps_of_broken_images():
    """16 images in 4 slots, 8 broken after 1 step and 8 never: little more than 2 batches of 8 steps instead of 4."""
    subset = images(16)
    subset.x[:, 0, 1, 1] = torch.where(torch.arange(16) % 2 == 0, 0.001, 0.5)
    refilled, plain = Raise(8, (8,)), Raise(8, (8,))
    outcomes(subset, 4, attack=refilled)
    for k in range(0, 16, 4):
        outcomes(subset.select(slice(k, k + 4)), 4, attack=plain)
    assert len(plain.diary) == 32
    assert len(refilled.diary) <= 8 * 2 + 4


def test_without_retire_broken_images_are_attacked_on():
    found = outcomes(images(4), lanes=2, retire=False)
    assert [f.broken_at for f in found] == [1, 2, 3, 4]
    assert [f.steps for f in found] == [8] * 4


@pytest.mark.parametrize("protocol", ["strict", "hill", "diffbreak_single"])
def test_rows_are_equal_with_and_without_refill(protocol):
    """The real attacks on digits: batch by batch, or in one window and backwards."""
    small = [
        f"protocol={protocol}",
        "protocol.images=6",
        "protocol.seeds=[5]",
        "protocol.votes=3",
        "protocol.judge.draws=2",
    ]
    small += ["dataset.lanes=2", "dataset.draws_per_call=2", "purifier.steps=2", "threat_model.eps=96/255"]
    if protocol == "strict":
        parts = ("apgd_ce", "apgd_t", "pgd_eot")
        small += [f"attack.attacks.{a}.{k}=2" for a in parts for k in ("iterations", "eot")]
        small += [
            "attack.confirm=2",
            "attack.attacks.apgd_ce.confirm=2",
            "attack.attacks.apgd_t.confirm=2",
            "attack.attacks.apgd_t.targets=1",
        ]
    else:
        small += ["attack.iterations=8", "attack.eot=2", *(["protocol.judge.screen=2"] if protocol == "hill" else [])]
    rows = {}
    for window, backwards in ((1, False), (3, True)):
        evaluation = build(composed(*small, f"window={window}"))
        if backwards:
            subset = evaluation.subset.select(torch.arange(5, -1, -1))
            evaluation = Evaluation(**{**vars(evaluation), "subset": subset})
        units = [u for u in evaluation.plan() if u.arm != "undefended"]
        assert max(len(u.ids) for u in units) == 2 * window
        groups = [evaluation.run(unit) for unit in units]
        rows[window, backwards] = sorted(
            itertools.chain.from_iterable(g.rows for g in groups), key=lambda r: (r["arm"], r["id"])
        )
    assert rows[1, False] == rows[3, True]
    defended = [r for r in rows[1, False] if r["arm"] == "defended"]
    assert all(r["looks"] >= 1 and r["seen"] for r in defended)
    assert any(r["lost_at"] is not None for r in defended)  # some were dropped


@pytest.mark.parametrize("protocol", ["diffhammer", "strict", "diffbreak_single"])
def test_the_judge_sees_where_the_attack_stands(protocol, monkeypatch):
    """Every evaluation of a running attack is of another point, not of the best one so far again."""
    seen, evaluate = [], Judge.evaluate

    def watched(self, model, x_adv, *rest):
        seen.append(x_adv)
        return evaluate(self, model, x_adv, *rest)

    monkeypatch.setattr(Judge, "evaluate", watched)
    small = [f"protocol={protocol}", "protocol.images=1", "protocol.seeds=[5]", "protocol.votes=1", "dataset.lanes=1"]
    small += ["purifier.steps=2", "protocol.judge.every=1", "protocol.judge.retire=false", "protocol.judge.draws=1"]
    attack = composed(f"protocol={protocol}")["choices"]["attack"]
    longer = [f"attack.attacks.{part}.iterations=3" for part in ("apgd_ce", "apgd_t", "pgd_eot")]
    evaluation = build(composed(*small, *small_budget(attack), *(longer if protocol == "strict" else ())))
    for arm, unit in {u.arm: u for u in evaluation.plan()}.items():
        seen.clear()
        evaluation.run(unit)
        evaluations, distinct = len(seen), len({point.numpy().tobytes() for point in seen})
        if arm != "undefended":
            assert evaluations == evaluation.arms[arm].attack.steps + 1
            ends = evaluation.arms[arm].attack.phase_ends
            assert distinct >= max(
                0.7 * evaluations, evaluations - len(ends)
            )  # the last point of a phase may be an earlier one
