"""The sweeps of hetero's settings: their runs compose, and a table comes of the cells that are there."""

import sweeps

from dp.runs.validate import check_setup
from tests.helpers.compose import setup


def test_every_cell_composes_and_no_run_is_listed_twice_in_a_sweep():
    for runs in sweeps.cells().values():
        assert len({*runs.values()}) == len(runs)
        for overrides in runs.values():
            made = setup(*overrides)
            check_setup(made)
            assert made.config["protocol"]["votes"] == 20
    assert all(t_s <= t_l for t_l, t_s in sweeps.cells()["t_l, t_s"])


def test_table_of_some_cells():
    sides = {"standard": (99.0, 97.0, 100.0), "robust": (70.5, 65.0, 76.0)}
    found = {"tau": {(0.5,): sides, (0.8,): sides}, "t_l, t_s": {(0.2, 0.1): sides}, "t": {(0.1,): sides}}
    words = sweeps.text(found)
    assert "| 0.2, 0.1 | 99.0 | 97.0 - 100.0 | 70.5 | 65.0 - 76.0 |" in words
