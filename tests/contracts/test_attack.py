"""The contract of an attack finds planted faults, and names the property and the likely cause in a sentence."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dp.attacks.base import Attack, check_members
from dp.attacks.pgd_eot import PGD
from dp.contracts.attack import failures, plain_defense
from dp.contracts.failure import undeclared
from dp.threat_models.ball import ThreatModel
from tests.helpers.contract import assert_sentence

THREATS = {"linf": ThreatModel("linf", 32 / 255), "l2": ThreatModel("l2", 1.5)}


class State(NamedTuple):
    x_adv: Tensor
    momentum: Tensor


@dataclass(frozen=True)
class Momentum(Attack):
    """PGD with momentum, as in docs/extending.md. `fault` plants one."""

    fault: str = ""
    iterations: int = 4

    @property
    def steps(self) -> int:
        return self.iterations

    @property
    def samples(self) -> int:
        return 2

    def says(self, through):
        return f"momentum through {through}"

    def start(self, model, x, y, threat, rng):
        if self.fault == "torch.rand":
            return State(threat.project(x + threat.eps * (2 * torch.rand_like(x) - 1), x), torch.zeros_like(x))
        if self.fault == "seeded":
            noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
            return State(threat.project(x + threat.eps * (2 * noise - 1), x), torch.zeros_like(x))
        if self.fault == "clean":
            return State(x, torch.zeros_like(x))
        return State(threat.random_start(x, rng), torch.zeros_like(x))

    def step(self, model, state, x, y, threat, rng):
        if self.fault == "clean":
            return state
        if self.fault == "in place":
            x += 0.01
        _, gradient = model.loss_gradient(state.x_adv, y, rng.draw(0), 2)
        size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
        if self.fault == "mean":
            size = gradient.abs().mean()
        if self.fault == "hidden":  # without an effect on this result
            return State(threat.project(state.x_adv + gradient, x), state.momentum + gradient / gradient.norm())
        if self.fault == "size":
            size = size * (1 + (len(x) > 4) * gradient.abs() / gradient.abs().amax(dim=(1, 2, 3), keepdim=True))
        momentum = state.momentum + gradient / size
        if self.fault == "state in place":
            state.momentum.add_(gradient / size)
        moved = threat.ascend(state.x_adv, momentum, 2.5 * threat.eps / self.iterations)
        if self.fault == "nan":
            moved = moved / 0
        return State(
            moved if self.fault == "not projected" else threat.project(moved, x),
            momentum if self.fault != "scalar state" else momentum.mean(),
        )


@dataclass(frozen=True)
class Counting(Momentum):
    """Counts its own calls, so an image that enters late gets other steps."""

    counts: tuple = (0,)

    def step(self, model, state, x, y, threat, rng):
        object.__setattr__(self, "counts", (self.counts[0] + 1,))
        faster = replace(self, iterations=1 + self.counts[0] % self.iterations)
        return super(Counting, faster).step(model, state, x, y, threat, rng)


class Counted(NamedTuple):
    x_adv: Tensor
    i: Tensor


@dataclass(frozen=True)
class SharedCount(Momentum):
    """Takes the count of the image that is furthest for that of all, so that late images get smaller steps."""

    def start(self, model, x, y, threat, rng):
        return Counted(threat.random_start(x, rng), torch.zeros(len(x), dtype=torch.long))

    def step(self, model, state, x, y, threat, rng):
        _, gradient = model.loss_gradient(state.x_adv, y, rng.draw(0), 2)
        moved = threat.ascend(state.x_adv, gradient, threat.eps / (1 + int(state.i.max())))
        return Counted(threat.project(moved, x), state.i + 1)


@dataclass(frozen=True)
class NoState(Momentum):
    def start(self, model, x, y, threat, rng):
        return {"x_adv": x}


@dataclass(frozen=True)
class WithoutSays(Momentum):
    says = None  # pyright: ignore[reportAssignmentType]


@dataclass(frozen=True)
class OtherSignature(Momentum):
    def step(self, model, state, x, y, threat):
        return state


def found(attack, images, norm="linf"):
    threat, model = THREATS[norm], plain_defense(attack, 1, 10)
    return failures(attack, model, images, threat, classes=10)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [Momentum(), PGD(4, 2), PGD(3, 2, restarts=2, select="best")])
def test_a_sound_attack_has_no_failure(attack, norm, images):
    assert found(attack, images, norm) == []


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("attack", "name", "words"),
    [
        (Momentum("mean"), "batch mates", ("only its batch mates", "a mean", "dim=(1, 2, 3)", "batch_bound")),
        (Momentum("size"), "batch size", ("only the number of its batch mates",)),
        (Momentum("torch.rand"), "determinism", ("the same streams", "torch.randn or torch.rand", "rng")),
        (Momentum("seeded"), "order", ("only its place in the batch", "each image has a stream")),
        (Momentum("in place"), "input", ("step 1 changed x in place", "x = x + ...")),
        (Momentum("state in place"), "state", ("step 1 changed momentum of the state in place", "new tensors")),
        (Momentum("scalar state"), "state", ("part momentum after step 1 is ()", "dimension 0")),
        (Momentum("not projected"), "feasible", ("x_adv after step", "threat.project(x_adv, x)")),
        (Momentum("clean"), "moves", ("6 of 6 images", "exceptions: {moves: REASON}")),
        (Momentum("nan"), "finite", ("after step 1",)),
        (Momentum("hidden"), "batch mates", ("in part momentum of its state",)),
        (Counting(), "determinism", ("keep nothing in the attack between calls",)),
        (SharedCount(), "refill", ("it enters the batch later", "counts steps in the state, per image")),
        (NoState(), "state", ("start returned dict", "NamedTuple")),
        (WithoutSays(), "call", ("says raised TypeError",)),
        (OtherSignature(), "call", ("step 1 raised TypeError", "docs/extending.md")),
    ],
    ids=lambda value: f"{type(value).__name__} {value.fault}" if isinstance(value, Momentum) else None,
)
def test_a_planted_fault_is_one_sentence(attack, name, words, norm, images):
    assert_sentence(found(attack, images, norm), name, *words)


def test_the_distance_is_the_faults_own(images):
    """Four steps of 2.5 eps / 4 without a projection: after two of them from a start within eps, up to 2.25 eps."""
    (failure,) = found(Momentum("not projected"), images)
    assert "need [0, 1] and linf 0.1255" in failure.sentence


def test_an_attack_that_declares_it_is_batch_bound_is_not_compared(images):
    class Bound(Momentum):
        batch_bound = True  # pyright: ignore[reportAssignmentType]

    assert found(Bound("mean"), images) == []
    assert [failure.name for failure in found(Bound("torch.rand"), images)] == ["determinism"]


def test_an_attack_that_may_stay_is_still_held_to_the_rest(images):
    assert undeclared(found(Momentum("clean"), images), {"moves": "by design"}) == []

    class StaysAndMixes(Momentum):
        """Returns nearly clean images that depend on the batch."""

        def step(self, model, state, x, y, threat, rng):
            return state._replace(x_adv=threat.project(x + 1e-4 * x.mean(), x))

    left = undeclared(found(StaysAndMixes(), images), {"moves": "by design"})
    assert [failure.name for failure in left] == ["batch mates"]


def test_what_is_no_attack_lacks_its_members():
    class Duck:
        steps = samples = 1

        def start(self, model, x, y, threat, rng):
            return x

    with pytest.raises(
        ValueError, match=r"need attack=duck to be an Attack of dp.attacks.base, got one without .*says"
    ):
        check_members(Duck(), "duck")
    check_members(PGD(1, 1), "pgd")
