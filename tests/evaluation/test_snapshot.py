"""Snapshots: an attack that goes on from one, after any iteration, ends with the bits of one that never stopped."""

import json
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load, save

from dp.evaluation.loss_curve import Point
from dp.evaluation.rows import Group
from dp.evaluation.snapshot import Outcome, Packed, Snapshot, packed, unpacked
from dp.runs.build import build
from tests.evaluation.test_slots import Raise, images, slots
from tests.helpers.compose import CONF, composed, small_budget

ATTACKS = sorted({p.stem for p in (CONF / "attack").glob("*.yaml")} - {"autoattack_upstream_standard"})
CPU = torch.device("cpu")


class Inner(NamedTuple):
    first: torch.Tensor
    second: tuple[torch.Tensor, ...]


class State(NamedTuple):
    x_adv: torch.Tensor
    inner: Inner
    i: torch.Tensor


def through_a_file(snapshot: Snapshot) -> Packed:
    """The snapshot as a file gives it back."""
    tensors, fields = packed(snapshot)
    assert all(t.stride()[-1:] in ((), (1,)) for t in tensors.values())
    return Packed(load(save(tensors)), json.loads(json.dumps(fields)))


def state(k: int) -> State:
    """One image's part of a batch of 3, in several layouts."""
    x = torch.rand(3, 3, 4, 4).to(memory_format=torch.channels_last)[k : k + 1]
    inner = Inner(torch.rand(3, 2)[:, 0][k : k + 1], (torch.rand(3, 2, 6)[k : k + 1, :, ::2], torch.zeros(1, 0)))
    return State(x, inner, torch.tensor([k]))


def test_what_is_packed_comes_back():
    """Values, types, strides and structure of nested states; images without a state or a point."""
    outcomes = (
        Outcome(),
        Outcome(torch.rand(3, 4, 4).permute(0, 2, 1), 0.1 + 0.2, 3, 2, 1, [4, 4], (2, -0.3), state(1)),
        Outcome(state=state(2), curve=(Point(0.1 + 0.2, 1e-30, 0.5), Point(1.0, 2.0, 0.0))),
    )
    before = Snapshot(1, (2,), (1,), (), outcomes, 1.5)
    after = unpacked(through_a_file(before), state(0), CPU)
    assert after._replace(outcomes=()) == before._replace(outcomes=())
    for one, other in zip(before.outcomes, after.outcomes, strict=True):
        for name in ("distance", "steps", "evaluations", "broken_at", "classes", "worst", "curve"):
            assert getattr(one, name) == getattr(other, name)
        assert type(one.state) is type(other.state)
        assert (one.x_adv is None) == (other.x_adv is None)
    one, other = before.outcomes[1], after.outcomes[1]
    assert type(other.state.inner) is Inner
    pairs = [(one.x_adv, other.x_adv), (one.state.x_adv, other.state.x_adv), (one.state.i, other.state.i)]
    pairs += [(one.state.inner.first, other.state.inner.first)]
    pairs += list(zip(one.state.inner.second, other.state.inner.second, strict=True))
    for a, b in pairs:
        assert torch.equal(a, b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.stride() == b.stride() or not a.numel()


@pytest.mark.parametrize(
    "other",
    [
        Inner(torch.zeros(1), (torch.zeros(1),)),
        state(0)._replace(i=torch.zeros(1)),
        state(0)._replace(x_adv=torch.zeros(1, 3, 4, 5)),
    ],
)
def test_a_state_of_another_attack_does_not_fit(other):
    saved = packed(Snapshot(0, (), (0,), (), (Outcome(state=state(0)),)))
    with pytest.raises(ValueError, match="the attack's own state"):
        unpacked(saved, other, CPU)


@pytest.mark.parametrize(("retire", "every", "lanes"), [(True, 1, 4), (True, 3, 5), (False, 2, 4), (True, 2, 20)])
def test_slots_go_on_from_every_snapshot(retire, every, lanes):
    """With refills, dropped images and two phases. No snapshot changes after it is taken."""
    subset, attack = images(12), Raise(8, (4, 8))
    attacked = slots(subset, lanes, every, retire, attack)
    taken: list[Snapshot] = []
    whole = attacked.run(lambda *_: None, on_snapshot=taken.append)
    assert len({s.phase for s in taken}) == 3
    if lanes < 12:
        assert any(s.waiting and s.active for s in taken)
    for number, snapshot in enumerate(taken):
        begun, left = attacked.restored(through_a_file(snapshot)), []
        again = attacked.run(lambda *_: None, begun, left.append)
        assert len(left) == len(taken) - number - 1  # no iteration is done twice
        for one, other in zip(whole, again, strict=True):
            assert torch.equal(one.x_adv, other.x_adv)
            assert one.state is other.state is None
            for name in ("distance", "steps", "evaluations", "broken_at", "classes", "worst"):
                assert getattr(one, name) == getattr(other, name)


def test_a_snapshot_of_other_images_is_refused():
    saved = packed(Snapshot.first(3))
    with pytest.raises(ValueError, match="need 12 images, got 3"):
        slots(images(12), 4).restored(saved)


def same(one: Group, other: Group) -> bool:
    clean = one.clean is None or torch.equal(one.clean, other.clean)
    curves = torch.equal(one.curves.nan_to_num(-1), other.curves.nan_to_num(-1))
    same = torch.equal(one.x_adv, other.x_adv) and torch.equal(one.adv, other.adv) and clean and curves
    return one.rows == other.rows and same


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_goes_on_from_its_state(attack):
    """Attack by attack, with 3 images in 2 slots: from the first snapshot, one in the middle and the last."""
    threat = {"stadv": "stadv", "low_frequency": "low_frequency"}.get(attack, "linf")
    given = [f"attack={attack}", f"threat_model={threat}", "protocol.images=3", "protocol.seeds=[5]"]
    given += ["protocol.votes=1", "dataset.lanes=2", "dataset.draws_per_call=2", "purifier.steps=2"]
    if attack.startswith("strict"):
        given += ["protocol=strict", "protocol.judge.draws=2", f"protocol.attack={attack}"]
    evaluation = build(composed(*given, *small_budget(attack)))
    arms = ("defended", "null") if attack in ("pgd_eot", "strict") else ("defended",)
    for unit in [u for u in evaluation.plan() if u.arm in arms]:
        taken: list[Snapshot] = []
        whole = evaluation.run(unit, on_snapshot=taken.append)
        for snapshot in {id(s): s for s in (taken[0], taken[len(taken) // 2], taken[-1])}.values():
            begun = evaluation.restored(unit, through_a_file(snapshot))
            assert same(evaluation.run(unit, begun=begun), whole)
