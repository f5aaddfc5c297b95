"""The study of the paper's tables on the embedded benchmarks: what is missing, and what it costs."""

import shlex

import paper_tables
import pytest

from dp.output.published import PUBLISHED, read_csv
from dp.runs.cells import Found
from dp.runs.validate import check_setup
from tests.helpers.compose import setup

WHOLE = "+experiment=digits/table1 hydra.mode=RUN purifier=atop"


def test_every_run_of_an_embedded_benchmark_is_missing_once_where_nothing_is_archived(monkeypatch):
    monkeypatch.setattr(paper_tables, "find", lambda *cell: Found(None, "not run"))
    cells = [cell for cell in read_csv(PUBLISHED / "cells.csv") if cell["command"] and cell["stand_in"]]
    missing = paper_tables.missing()
    assert {*missing} == {tuple(shlex.split(cell["command"])) for cell in cells}
    assert len({*missing}) == len(missing) < len(cells)
    check_setup(setup(*missing[0]))


def test_a_run_of_which_there_are_fewer_images_is_missing(monkeypatch):
    def of_fewer(command, folder, note, folders):
        return Found(None, "only 128 of 512 images" if command == WHOLE else "")

    monkeypatch.setattr(paper_tables, "find", of_fewer)
    assert paper_tables.missing() == [tuple(shlex.split(WHOLE))]


def test_the_cost_counts_gradients_and_grows_with_the_images():
    """AToP calls its generator once: 20 steps of 4 samples, each with a backward pass."""
    whole, fewer = (*shlex.split(WHOLE),), (*shlex.split(WHOLE), "protocol.images=64")
    assert paper_tables.million(whole) == pytest.approx(8 * paper_tables.million(fewer), rel=0.01)
    assert 1 < 1e6 * paper_tables.million(fewer) / (64 * 3 * 20 * 4 * 2) < 4  # three conditions, and fresh samples
