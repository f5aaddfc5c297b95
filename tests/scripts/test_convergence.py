"""The convergence study: the budgets of its cells, and the rule that chooses one."""

import convergence
import pandas as pd
import pytest
from convergence import BUDGETS, DEFENSES, TABLE, Budget, beyond, converged, overrides, text
from matplotlib.container import ErrorbarContainer

from dp.figures import convergence as figure
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


def test_the_budget_after_which_the_next_takes_less_than_two_points():
    """EOT takes 1.9 or 2.1 points for the first factor of 4 here, and nothing else counts."""
    small, large = {1: 70.0, 2: 69.0, 4: 68.1, 16: 67.0}, {1: 70.0, 2: 68.5, 4: 67.9, 16: 67.0}
    assert converged(lines(lambda b, d: 70.0)) == Budget()
    assert converged(lines(lambda b, d: small[b.eot])) == Budget()
    assert converged(lines(lambda b, d: large[b.eot])) == Budget(eot=4)  # it takes the most of those of its cost
    last = list(DEFENSES)[-1]
    one = lines(lambda b, d: large[b.eot] - 5 * (d == last and b == Budget(2, 2, 2)))
    assert converged(one) == Budget(2, 2, 2)  # one defense loses five points there
    few = [cell for cell in one if cell["iterations"] * cell["eot"] * cell["restarts"] <= 8]
    assert converged(few) is None  # the cells that decide are missing
    assert "No budget is known" in text(few)
    assert "16 cells are not measured yet" in text(few)


def test_what_dearer_budgets_take_beyond_one():
    cells = lines(lambda b, d: 70.0 - b.eot - 0.1 * b.restarts)
    points = {d: (name, pytest.approx(taken)) for d, (name, taken) in beyond(cells, Budget(eot=4)).items()}
    assert points == {d: ("16 x eot", 12.0) for d in DEFENSES}


def archived() -> list[dict]:
    return pd.read_csv(TABLE).to_dict("records")


def test_the_preset_is_the_converged_budget():
    budget = converged(archived())
    assert budget is not None
    plain, more = (
        build(composed(*w, "protocol.images=2")).arms["defended"].attack
        for w in (["protocol=strict", "attack=strict_mask"], ["+experiment=digits/strict_mask"])
    )
    assert more == plain.with_budget(**{key: lambda n, f=f: f * n for key, f in budget._asdict().items()})


def test_strict_says_what_its_converged_budget_takes():
    budget = converged(archived())
    taken = [one["taken"] for one in archived() if Budget(*(one[k] for k in Budget._fields)) == budget]
    assert len(taken) == len(DEFENSES)
    said = composed("protocol=strict")["protocol"]["facts"]["digits"]
    assert said == {"experiment": "digits/strict", "least": round(min(taken), 1), "most": round(max(taken), 1)}
    assert composed("+experiment=digits/strict")["protocol"]["facts"] is None


def test_every_cell_is_a_point_of_its_curves():
    """The first budget is the start of all four families."""
    found = convergence.curves(lines(lambda b, d: 70.0 - b.cost)[:5])
    assert (found["defense"].tolist(), found["family"].tolist()) == ([0] * 8, [0, 0, 1, 1, 2, 2, 3, 3])
    assert set(found["robust"][:, 0]) == {69.0, 66.0, 62.0}
    axis, *_ = figure.draw(found).axes
    assert {len(c.lines[0].get_xdata()) for c in axis.containers if isinstance(c, ErrorbarContainer)} == {2}
