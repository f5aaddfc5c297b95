"""The convergence study: the budgets of its cells, and the rule that chooses one."""

import convergence
import pytest
from convergence import BUDGETS, DEFENSES, Budget, converged, overrides, text

from dp.runs.build import build
from tests.helpers.compose import composed


@pytest.mark.parametrize("defense", ["uniform DiffPure", "hetero_official"])
def test_every_attack_of_the_union_gets_the_budget(defense):
    """Each part's own counts are multiplied, those inside wrappers too, and nothing else of the attack changes."""
    plain = build(composed(*overrides(defense, Budget()))).arms["defended"].attack
    more = build(composed(*overrides(defense, Budget(2, 3, 4)))).arms["defended"].attack
    by = {"iterations": 2, "eot": 3, "restarts": 4}
    assert more == plain.with_budget(**{key: lambda n, f=f: f * n for key, f in by.items()})
    for one, other in zip(plain.parts(), more.parts(), strict=True):
        assert {k: by[k] * n for k, n in one.attack.budget().items()} == other.attack.budget()


def lines(robust) -> list[dict]:
    """Cells of all defenses whose robust accuracy is `robust(budget, defense)`."""
    common = {"spent": 1.0, "standard": 99.0, "taken": 0.0, "taken_low": 0.0, "taken_high": 0.0}
    return [
        {"defense": d, "budget": b.name, **b._asdict(), "robust": robust(b, d), **common}
        for d in DEFENSES
        for b in BUDGETS
    ]


def test_the_budget_after_which_no_dearer_one_takes_two_points():
    """EOT takes three points for each factor of 4 here, and nothing else counts."""
    eot = {1: 70.0, 2: 68.5, 4: 67.0, 16: 66.0}
    assert converged(lines(lambda b, d: eot[b.eot])) == Budget(eot=4)
    assert converged(lines(lambda b, d: 70.0)) == Budget()
    last = list(DEFENSES)[-1]
    one = lines(lambda b, d: eot[b.eot] - 5 * (d == last and b == Budget(4, 4, 4)))
    assert converged(one) is None  # one defense loses five points at the dearest cell
    assert converged(one[:-1]) is None  # a cell is missing
    assert "cells are not measured yet" in text(one[:-1])


def test_figure_of_some_cells(tmp_path):
    convergence.draw(tmp_path / "a.png", lines(lambda b, d: 70.0 - b.cost)[:7])
    assert (tmp_path / "a.png").stat().st_size > 10_000
