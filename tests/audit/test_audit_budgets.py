"""Controls and comparisons: a sound attack passes, planted faults are found by the check that is named for them."""

import dataclasses

import numpy as np
import pytest
import torch

from dp.attacks.apgd import APGD
from dp.attacks.autoattack import autoattack
from dp.attacks.base import Attack
from dp.attacks.null import Null
from dp.attacks.pgd_eot import PGD
from dp.attacks.square import Square
from dp.attacks.through import Through
from dp.attacks.union import Union
from dp.audit import budgets as controls
from dp.audit import rival_attacks as comparisons
from dp.audit.check import Subject
from dp.audit.reruns import above, small
from dp.defense.wrapper import Wrapped
from dp.evaluation.rows import Group, Row, Unit
from tests.helpers.audited import Linear, State, composed_subject, made, planted, weights
from tests.helpers.compose import small_budget

IMAGES = 8


def subject(*overrides: str) -> Subject:
    return composed_subject(f"protocol.images={IMAGES}", "protocol.votes=2", *overrides, quick=False)


@pytest.fixture(autouse=True)
def _few_queries(monkeypatch):
    for name, value in {"QUERIES": 50, "STEPS": 10, "DIRECTIONS": 8}.items():
        monkeypatch.setattr(comparisons, name, value)


@pytest.fixture(scope="module")
def bare() -> Subject:
    """PGD on the bare classifier, which breaks it on every image."""
    return subject("purifier=none", "threat_model.eps=64/255", "attack.iterations=5", "attack.eot=1")


@pytest.fixture(scope="module")
def defended() -> Subject:
    return subject("purifier=diffpure", "purifier.steps=2", *small_budget("pgd_eot"))


@dataclasses.dataclass(frozen=True)
class Downhill(Attack):
    """PGD that descends the loss: a white-box attack that breaks nothing."""

    iterations: int = 3
    eot: int = 1

    @property
    def steps(self) -> int:
        return self.iterations

    @property
    def samples(self):
        return self.eot

    @property
    def select(self):
        return "last"

    def says(self, through):
        return "descends"

    def start(self, model, x, y, threat, rng):
        return State(threat.random_start(x, rng))

    def step(self, model, state, x, y, threat, rng):
        _, grad = model.loss_gradient(state.x_adv, y, rng.draw(0), self.eot)
        return State(threat.project(threat.ascend(state.x_adv, -grad, threat.eps / 4), x))


def test_null_control_of_a_sound_run(bare):
    finding = controls.null(bare)
    assert finding.verdict == "PASS"
    assert "attacked 0 %" in finding.value


def test_null_control_finds_an_attack_that_does_nothing(bare):
    helpless = Downhill()
    null = Null(helpless.steps, helpless.samples, helpless.select)
    finding = controls.null(planted(planted(bare, attack=helpless), arm="null", attack=null))
    assert finding.verdict == "WARN"


def test_eps_sweep(bare):
    finding = controls.eps_sweep(bare)
    assert finding.verdict == "PASS"
    assert list(finding.curve["x"]) == pytest.approx([0, *(k / 255 for k in (2, 4, 8, 16, 32, 64)), 1])
    accuracy = finding.curve["accuracy"]
    assert accuracy[0] == 100
    assert accuracy[-1] == 0


def test_eps_sweep_names_a_broken_gradient_and_a_weak_budget(bare):
    broken = controls.eps_sweep(planted(bare, attack=Downhill()))
    assert broken.verdict == "FAIL"
    assert "optimizer or gradient (exact) broken" in broken.value
    short = controls.eps_sweep(planted(bare, attack=PGD(2, 1, step_size=0.01, random_start=False, select="last")))
    assert short.verdict == "WARN"
    assert "together and may need" in short.value


def test_more_work_never_helps_the_defender(bare):
    finding = controls.more_work(bare)
    assert finding.verdict == "PASS"
    assert "iterations x0.25" in finding.value
    assert "restarts x1" in finding.value


@dataclasses.dataclass(frozen=True)
class Spent(Downhill):
    """Uphill with one iteration, downhill with more."""

    iterations: int = 4

    def step(self, model, state, x, y, threat, rng):
        if self.iterations > 1:
            return super().step(model, state, x, y, threat, rng)
        x_adv = state.x_adv
        for k in range(5):
            _, grad = model.loss_gradient(x_adv, y, rng.draw(k), self.eot)
            x_adv = threat.project(threat.ascend(x_adv, grad, threat.eps / 2), x)
        return State(x_adv)


def test_more_work_that_helps_the_defender_is_found(bare):
    finding = controls.more_work(planted(bare, attack=Spent()))
    assert finding.verdict == "FAIL", finding


def test_a_union_with_an_exact_part_can_be_broken(bare):
    """One part has an approximate gradient; the other has the exact one, and should have succeeded."""
    parts = {"downhill": Downhill(), "blind": Through(Downhill(), "blind")}
    broken = planted(bare, (("blind",), ()), attack=Union(parts, confirm=1))
    finding = controls.eps_sweep(broken)
    assert finding.verdict == "FAIL"
    assert "gradient (blind, exact) broken" in finding.value


class Fresh(PGD):
    """Queries with fresh noise, although it could know the noise."""

    def step(self, model, state, x, y, threat, rng):
        while isinstance(model, Wrapped):
            model = model.model
        return super().step(model, state, x, y, threat, rng)


def test_known_noise(bare):
    """Every sample flips the signs of other pixels. An attack that knows them moves all pixels in the right direction,
    up to 20 in the score. One that does not moves them at random, which gives .1 |w|_2 = 1.6 of a score of 4.
    """
    w = weights()

    def flipped(x, denoiser, classifier, rng, *, on_step=None):
        return 0.5 + (x - 0.5) * (2 * (rng.uniform_like(x) > 0.5) - 1) + (4 - 0.5 * w.sum()) / w.square().sum() * w

    found = {kind: controls.known_noise(made(Linear(w), flipped, kind(5, 1), images=8)) for kind in (PGD, Fresh)}
    assert found[PGD].verdict == "PASS"
    assert "known noise 0 %" in found[PGD].value
    assert found[Fresh].verdict == "FAIL"  # not even without a bound: each sample flips half of all pixels
    assert "unbounded and" in found[Fresh].value
    assert controls.known_noise(bare).verdict == "INFO"  # draws no noise


def test_black_box_stronger_than_a_broken_white_box(bare):
    assert comparisons.black_box(bare).verdict == "PASS"
    broken = planted(bare, attack=Downhill())
    broken.memo.update({key: bare.memo[key] for key in ("transfer", "square", "spsa")})  # by other means
    finding = comparisons.black_box(broken)
    assert finding.verdict == "FAIL"
    assert "transfer 0 % (p 0.0078)" in finding.value  # two-sided, 8 of 8 images: 2 / 2^8


def test_a_union_with_a_part_that_uses_values_alone_is_compared(bare):
    parts = {"downhill": Downhill(), "square": Square(1, 1)}
    finding = comparisons.black_box(planted(bare, attack=Union(parts, confirm=1)))
    assert finding.verdict == "WARN"  # two queries win too few images for McNemar's test
    assert "transfer 0 %" in finding.value
    assert comparisons.black_box(planted(bare, attack=Square(2, 1))).verdict == "INFO"


def test_autoattack_weaker_than_its_parts(bare):
    assert comparisons.autoattack_parts(bare).verdict == "PASS"

    @dataclasses.dataclass(frozen=True)
    class FirstOnly(Union):
        """An ensemble that always returns the point of its first part."""

        def step(self, model, state, x, y, threat, rng):
            after = super().step(model, state, x, y, threat, rng)
            return after._replace(x_adv=after.parts[0].x_adv)

    weak = FirstOnly({"downhill": Downhill(), "pgd": PGD(5, 1, select="last")}, confirm=1)
    finding = comparisons.autoattack_parts(planted(bare, attack=weak))
    assert finding.verdict == "FAIL"
    assert "part pgd 0 %" in finding.value


def test_union_of_attacks_against_the_headline(bare):
    assert comparisons.union(bare).verdict == "PASS"
    finding = comparisons.union(planted(bare, attack=Downhill()))
    assert finding.verdict == "FAIL"
    assert finding.value.startswith("worst case 0 %")


@pytest.mark.parametrize("check", [*controls.CHECKS, *comparisons.CHECKS])
def test_no_attack_is_nothing_to_check(check):
    finding = check(subject("purifier=none", "attack=none"))
    assert finding.verdict == "INFO"
    assert finding.value.startswith("does not apply")


def group(right: np.ndarray) -> Group:
    """Rows whose single sample is right where `right` is not 0."""
    rows = [Row(id=k, label=1, adv=[int(r)], adv_vote=int(r)) for k, r in enumerate(right)]  # pyright: ignore[reportCallIssue]
    return Group(Unit("defended", 0, ()), rows, torch.empty(0), None, torch.empty(0), 0.0)


def test_chance_alone_is_rarely_a_failure():
    """Of pairs of attacks of the same strength at most 5 % fail the check, and no more where 3 are compared."""
    rng = np.random.default_rng(0)
    pairs = [(group(rng.random(8) < 0.5), group(rng.random(8) < 0.5)) for _ in range(60)]
    found = [above(*pair)[0] for pair in pairs]
    assert found.count("FAIL") <= 0.05 * len(pairs)
    assert sum(above(*pair, comparisons=3)[0] == "FAIL" for pair in pairs) <= found.count("FAIL")
    assert above(group(np.zeros(8)), group(np.ones(8)), comparisons=3)[0] == "FAIL"
    assert above(group(np.ones(8)), group(np.zeros(8)))[0] == "PASS"


def test_another_budget_reaches_every_part():
    attack = Union({"a": Through(PGD(4, 2), "bpda"), "b": APGD(6, 3)})
    twice = attack.with_budget(iterations=lambda n: 2 * n)
    assert [twice.attacks["a"].attack.iterations, twice.attacks["b"].iterations] == [8, 12]
    assert attack.attacks["b"] == APGD(6, 3)
    package = autoattack("upstream", "rand", None, None).with_budget(eot=lambda n: n // 2)
    assert package.samples == 10
    assert attack.budget() == {"iterations": 6, "eot": 3, "restarts": 1}
    assert package.with_budget(iterations=lambda n: n // 4).candidates == 50


def test_small_audit_has_a_small_budget():
    quick = composed_subject("attack.iterations=50", "attack.eot=20")
    assert (small(quick).steps, small(quick).samples) == (5, 4)
    assert small(dataclasses.replace(quick, quick=False)).steps == 50
