"""A budget of network evaluations: the iterations fit it, one more does not, and all attacks get the same."""

import dataclasses
import re

import pytest

from dp.attacks.null import Null
from dp.attacks.pgd_eot import PGD
from dp.attacks.through import Through
from dp.attacks.union import Union
from dp.evaluation.budget import check_budget, spent_of, within
from dp.runs.build import build
from dp.runs.keys import run_key
from tests.helpers.compose import TINY, composed, options

SMALL = [*TINY, "purifier.steps=2", "workers=1", "memory=store"]
NEEDS = {  # what an attack runs under, if not under linf on digits
    "stadv": ["threat_model=stadv"],
    "low_frequency": ["threat_model=low_frequency"],
    **{name: ["dataset=canvas"] for name in options("attack") if "mask" in name},
}


@pytest.fixture(scope="module")
def evaluation():
    return build(composed(*SMALL))


class Calls:
    """Counts the images in the denoiser's calls. A call whose result needs a gradient counts 1.1 more."""

    def __init__(self, denoiser):
        self.seen = 0.0
        denoiser.register_forward_hook(self)

    def __call__(self, module, inputs, output):
        self.seen += len(inputs[0]) * (2.1 if output.requires_grad else 1.0)


@pytest.mark.parametrize("attack", ["pgd_eot", "apgd_ce", "bpda_eot", "square", "union"])
@pytest.mark.parametrize("budget", [300, 1000])
def test_the_attack_spends_its_budget_and_one_more_iteration_would_not_fit(attack, budget):
    given = [word for word in SMALL if not word.startswith("attack.")]
    evaluation = build(composed(*given, f"attack={attack}"))
    counted = spent_of(within(evaluation, budget), budget)
    one, longest = evaluation.arms["defended"].attack, counted.iterations
    before = one.budget()["iterations"]
    more = one.with_budget(iterations=lambda n: max(1, n * (longest + 1) // before))
    arm = evaluation.arms["defended"]._replace(attack=more)
    dearer = spent_of(dataclasses.replace(evaluation, arms={**evaluation.arms, "defended": arm}), budget)
    assert counted.spent <= budget < dearer.spent


@pytest.mark.parametrize("attack", options("attack"))
def test_every_attack_fits_the_budget_or_is_refused_in_a_line(attack):
    given = [word for word in SMALL if not word.startswith("attack.")]
    evaluation = build(composed(*given, f"attack={attack}", *NEEDS.get(attack, [])))
    refused = ""
    try:
        evaluation = within(evaluation, 400)
    except ValueError as error:
        refused = str(error)
    assert re.fullmatch("need .*", refused) if refused else 0 < spent_of(evaluation, 400).spent <= 400


@dataclasses.dataclass(frozen=True)
class Once(PGD):
    """As much work for any number of iterations."""

    @property
    def steps(self) -> int:
        return 1


def attacked_by(attack, evaluation):
    arms = {**evaluation.arms, "defended": evaluation.arms["defended"]._replace(attack=attack)}
    return dataclasses.replace(evaluation, arms=arms)


def test_work_that_does_not_grow_is_refused(evaluation):
    with pytest.raises(ValueError, match=r"whose work grows with its iterations for a budget, .*: set budget=null$"):
        within(attacked_by(Once(10, 1), evaluation), 800)


def test_work_may_begin_to_grow_late(evaluation):
    """The longest part asks the classifier alone, and the other one has a single iteration until the first has 20."""
    attack = Union({"long": Through(PGD(20, 1), "blind"), "short": PGD(2, 10)}, confirm=1)
    gradient = 10 * 3 * 2.1  # ten samples of three network evaluations, and their backward pass
    found = spent_of(within(attacked_by(attack, evaluation), 300), 300)
    assert found.iterations == 49, "four iterations of the short part, and nearly a fifth"
    assert 300 - gradient < found.spent <= 300


@pytest.mark.parametrize("attack", [["pgd_eot", "attack.eot=2"], ["bpda_eot"], ["square"]], ids=lambda words: words[0])
def test_a_real_attack_makes_as_many_calls_as_were_counted(attack):
    """Square asks a randomized defense twice for every candidate."""
    given = [word for word in SMALL if not word.startswith("attack.")]
    fitted = within(build(composed(*given, f"attack={attack[0]}", *attack[1:])), 300)
    unit = next(unit for unit in fitted.plan() if unit.arm == "defended")
    calls = Calls(fitted.arms["defended"].scored.denoiser)
    fitted._slots(unit, fitted._images(unit)).run(lambda *_: None)
    assert calls.seen / len(unit.ids) == pytest.approx(spent_of(fitted, 300).spent, rel=0.02)


def test_the_conditions_get_the_same_attack(evaluation):
    fitted = within(evaluation, 500)
    attack = fitted.arms["defended"].attack
    assert fitted.arms["undefended"].attack == attack != evaluation.arms["defended"].attack
    assert isinstance(fitted.arms["null"].attack, Null)


def test_a_budget_does_not_depend_on_the_memory_mode(evaluation):
    again = build(composed(*SMALL[:-1], "memory=recompute"))
    assert within(again, 400).arms["defended"].attack == within(evaluation, 400).arms["defended"].attack


def test_the_budget_is_part_of_the_key_only_if_it_is_set():
    plain, keys = composed(*SMALL), {run_key(composed(*SMALL, f"budget={n}")) for n in (300, 400)}
    older = {key: value for key, value in plain.items() if key not in ("budget", "cost")}
    assert run_key(plain) == run_key(older)
    assert len(keys | {run_key(plain)}) == 3


@pytest.mark.parametrize(
    ("overrides", "budget", "message"),
    [
        (["attack=none"], 100, "attack with iterations"),
        (["attack=transfer"], 100, "asks the denoiser"),
        (["attack=autoattack_upstream"], 3000, "whose work can be counted"),
        (["attack=autoattack_upstream_standard"], 3000, "whose work can be counted"),
        (["attack=pgd_eot"], 3, "need budget >= "),
    ],
)
def test_what_has_no_budget_is_refused(overrides, budget, message):
    given = [word for word in SMALL if not word.startswith("attack.")]
    with pytest.raises(ValueError, match=message):
        within(build(composed(*given, *overrides)), budget)


@pytest.mark.parametrize("budget", [0, -3, 2.5, "many", True])
def test_a_budget_is_a_whole_number(budget):
    with pytest.raises(ValueError, match="whole number >= 1"):
        check_budget(budget)
