"""Triggers and poison: which pixels and which images they change."""

import math
from functools import partial

import pytest
import torch

from dp.sanitizing.poison import Poison
from dp.sanitizing.triggers import blended, patch, sinusoidal
from dp.subset import Subset


def some(n: int = 40, channels: int = 1) -> Subset:
    x = torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    return Subset(torch.arange(n) + 100, x, torch.arange(n) % 5)


def attack(rate: float = 0.25, target: int = 0, seed: int = 3) -> Poison:
    return Poison(partial(patch, side=2, values=[1.0]), rate, target, seed)


def test_a_patch_is_in_the_corner_and_nowhere_else():
    x = some(3, channels=3).x
    marked = patch(x, side=2, values=[0.0, 0.5, 1.0])
    assert marked[:, :, 6:, 6:].permute(1, 0, 2, 3).flatten(1).tolist() == [[v] * 12 for v in (0.0, 0.5, 1.0)]
    changed = (marked != x).any(1)
    assert changed.sum() == 3 * 4
    assert changed[:, 6:, 6:].all()


def test_a_blend_is_one_pattern_for_all_images():
    x = some(4).x
    pattern = blended(x, share=0.25, seed=7) - 0.75 * x
    assert torch.allclose(pattern, pattern[:1].expand_as(pattern), atol=1e-6)
    assert 0 <= pattern.min() < 0.05
    assert 0.2 < pattern.max() <= 0.25
    assert torch.equal(blended(x[2:], share=0.25, seed=7), blended(x, share=0.25, seed=7)[2:])
    assert not torch.equal(blended(x, share=0.25, seed=8), blended(x, share=0.25, seed=7))


def test_a_sine_has_its_period_along_the_rows():
    gray = torch.full((1, 3, 8, 8), 0.5)
    marked = sinusoidal(gray, delta=0.2, frequency=2.0)
    expected = torch.tensor([0.5 + 0.2 * math.sin(2 * math.pi * j / 4) for j in range(8)])
    assert torch.allclose(marked, expected.expand(1, 3, 8, 8), atol=1e-6)
    assert sinusoidal(torch.ones(1, 1, 8, 8), delta=0.9, frequency=1.0).aminmax() == (pytest.approx(0.1), 1.0)


def test_poison_masks_the_right_images():
    data = some()
    given, poisoned = attack().applied(data)
    assert poisoned.sum() == 10  # a quarter of the whole set
    assert not poisoned[data.y == 0].any()  # the target class is left out
    assert (given.y[poisoned] == 0).all()
    assert torch.equal(given.y[~poisoned], data.y[~poisoned])
    assert torch.equal(given.x[~poisoned], data.x[~poisoned])
    assert torch.equal(given.x[poisoned], patch(data.x[poisoned], side=2, values=[1.0]))
    assert torch.equal(given.ids, data.ids)
    assert data.x.max() < 1  # the set that was given is not touched


def test_the_choice_depends_on_the_seed_alone():
    data = some()
    first = attack().chosen(data.y)
    torch.manual_seed(99)
    assert torch.equal(attack().chosen(data.y), first)
    assert not torch.equal(attack(seed=4).chosen(data.y), first)
    assert set(first[:20].tolist()) == set(first[20:].tolist()) == {True, False}


def test_the_success_is_measured_outside_the_target_class():
    test = some()
    attacked = attack(target=2).attacked(test)
    assert len(attacked.x) == 32
    assert 2 not in attacked.y.tolist()
    assert (attacked.x[:, :, 6:, 6:] == 1).all()
    assert torch.equal(attacked.y, test.y[test.y != 2])


def test_without_a_trigger_a_set_stays_as_it_is():
    none = Poison(None, 0.0, -1, 0)
    given, poisoned = none.applied(some())
    assert not none.known
    assert torch.equal(given.x, some().x)
    assert not poisoned.any()
    assert not len(none.attacked(some()).x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: attack(rate=0.0), "need 0 < poison.rate < 1"),
        (lambda: attack(target=-1), "poison.target >= 0, got poison.rate=0.25, poison.target=-1"),
        (lambda: Poison(None, 0.3, -1, 0), "without a trigger, which poisons nothing, got poison.rate=0.3"),
        (lambda: attack().chosen(torch.zeros(8)), "need images outside class 0 to poison, got 8 of that class alone"),
        (lambda: attack(rate=0.9).chosen(some().y), "need between 1 and 32 poisoned images"),
        (lambda: attack(rate=0.001).chosen(some().y), "got 0"),
        (lambda: patch(some().x, side=9, values=[1.0]), "need 1 <= side <= 8"),
        (lambda: patch(some().x, side=2, values=[1.0, 0.5]), "need 1 or 1 values"),
        (lambda: blended(some().x, share=0.0, seed=0), "need 0 < share <= 1"),
        (lambda: sinusoidal(some().x, delta=0.1, frequency=0.0), "need delta > 0 and frequency > 0"),
    ],
)
def test_mistakes(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
