"""What every attack declares: parts, budgets, reach; and what wrappers hand on, of attacks and of defenses."""

import inspect

import pytest
import torch

from dp.attacks.apgd import APGD
from dp.attacks.autoattack import Upstream
from dp.attacks.base import Attack, Part
from dp.attacks.bpda import BPDA
from dp.attacks.diffhammer import DiffHammer
from dp.attacks.none import NoAttack
from dp.attacks.null import Null
from dp.attacks.pgd_eot import PGD
from dp.attacks.spsa import SPSA
from dp.attacks.square import Square
from dp.attacks.through import Through
from dp.attacks.union import Union
from dp.attacks.wrapper import Wrapped
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.defense.wrapper import Wrapped as WrappedDefense
from dp.objectives import margin
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel
from tests.attacks.test_apgd import Net, jitter, seeded

ATTACKS = [
    PGD(3, 2, step_size=0.01),
    APGD(3, 2, "targeted"),
    BPDA(3, 2, 0.01),
    DiffHammer(3, 2),
    SPSA(3, 2),
    Square(3, 2),
    Upstream("rand"),
    NoAttack(),
    Null(3, 2, "last", ends=(1, 3)),
    Union({"a": PGD(3, 2), "b": Square(4, 5)}),
]


def test_parts_are_leaves_with_the_modes_on_the_way():
    pgd, apgd, square = PGD(1, 1), APGD(1, 1), Square(1, 1)
    inner = Union({"c": apgd, "d": Through(square, "full")})
    whole = Through(Union({"a": Through(pgd, "bpda"), "b": inner, "e": pgd}), "surrogate")
    assert whole.parts() == (
        Part("a", pgd, ("surrogate", "bpda")),
        Part("c", apgd, ("surrogate",)),
        Part("d", square, ("surrogate",)),
        Part("e", pgd, ("surrogate",)),
    )
    assert Through(pgd, "full").parts() == pgd.parts() == (Part("", pgd, ()),)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_a_wrapper_hands_on_every_member(attack):
    members = [name for name, member in vars(Attack).items() if isinstance(member, property)]
    assert len(members) >= 13
    wrapped, threat = Wrapped(attack), ThreatModel("linf", 0.1)
    for name in members:
        assert inspect.getattr_static(Wrapped, name) is not inspect.getattr_static(Attack, name), name
        assert getattr(wrapped, name) == getattr(attack, name), name
    assert wrapped.parts() == attack.parts()
    assert wrapped.budget() == attack.budget()
    assert wrapped.reach(threat) == attack.reach(threat)
    assert wrapped.width(threat) == attack.width(threat)
    assert dict(wrapped.members(10)) == dict(attack.members(10))
    assert wrapped.countable() == Wrapped(attack.countable())
    twice = wrapped.with_budget(iterations=lambda n: 2 * n)
    assert twice == Wrapped(attack.with_budget(iterations=lambda n: 2 * n))
    assert (twice == wrapped) == ("iterations" not in attack.budget())


def test_phases_end_with_the_last_step():
    for attack in ATTACKS:
        assert attack.phase_ends[-1] == attack.steps
        assert list(attack.phase_ends) == sorted(set(attack.phase_ends))


def test_steps_that_cannot_cross_the_ball_say_how_far_they_go():
    """From a random start the far side of the ball is 2 eps away, from the image itself eps."""
    linf, l2 = ThreatModel("linf", 0.1), ThreatModel("l2", 0.1)
    assert PGD(4, 1, step_size=0.03).reach(linf) == pytest.approx(0.12)
    assert PGD(4, 1, step_size=0.03).width(linf) == pytest.approx(0.2)
    assert PGD(4, 1, step_size=0.03, random_start=False).width(linf) == pytest.approx(0.1)
    assert PGD(4, 1).reach(linf) is None  # its steps adapt to eps
    assert PGD(4, 1, step_size=0.03, l2_step="sign").reach(l2) is None  # such a step is longer than its size
    assert BPDA(4, 1, 0.03).reach(l2) == pytest.approx(0.12)
    assert BPDA(4, 1, 0.03).width(l2) == pytest.approx(0.1)
    assert all(attack.reach(linf) is None for attack in (APGD(1, 1), Square(1, 1), NoAttack(), Upstream("rand")))


def test_members_of_an_ensemble():
    union = ATTACKS[-1]
    assert dict(union.members(3)) == {"a": PGD(3, 2), "b": Square(4, 5)}
    assert set(Upstream("rand").members(3)) == {"ce", "dlr"}
    assert set(Upstream("rand").members(2)) == {"ce"}
    assert not Through(union, "bpda").is_ensemble
    assert [attack.is_ensemble for attack in ATTACKS].count(True) == 2


def test_a_wrapped_defense_gives_the_same_answers():
    model = Defended(jitter, None, Classifier(Net(64, 6)), draws_per_call=2, variants={"still": lambda x, *_, **__: x})
    x, y, rng = torch.rand(4, 1, 8, 8, generator=seeded(3)), torch.arange(4), Streams(range(4), 0, "attack")
    pairs = [
        (model, WrappedDefense(model)),
        (model.gradient_mode("still"), WrappedDefense(model).gradient_mode("still")),
    ]
    for plain, wrapped in [*pairs, (model.gradient_modes(("bpda",)), WrappedDefense(model).gradient_modes(("bpda",)))]:
        with torch.no_grad():
            assert torch.equal(plain.logits(x, rng, 3), wrapped.logits(x, rng, 3))
            assert torch.equal(plain.logits_of([(0, 1)], [x], rng, 3), wrapped.logits_of([(0, 1)], [x], rng, 3))
            assert torch.equal(plain.loss(x, y, rng, 3, margin), wrapped.loss(x, y, rng, 3, margin))
        for a, b in zip(plain.loss_gradient(x, y, rng, 3), wrapped.loss_gradient(x, y, rng, 3), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(plain.purified(x, rng, 2), wrapped.purified(x, rng, 2))
        assert torch.equal(plain.vjp(x, rng, [0, 1, 2, 1], x), wrapped.vjp(x, rng, [0, 1, 2, 1], x))
