"""The runs of a study: one that was stopped goes on, and one that is made seed by seed is the same run."""

import shutil

import cells
import pytest

from dp.output import record
from dp.output.archived import read_rows
from dp.runs import compose, pipeline
from dp.runs.keys import run_key
from tests.helpers.compose import TINY

SMALL = (*TINY, "protocol.seeds=[5,6]", "audit=false")


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("asked", [True, False])
def test_a_run_whose_rows_were_all_there_is_audited_after_it(asked, results, monkeypatch):
    """Nothing was attacked, so nothing was audited before the attack."""
    calls = []
    monkeypatch.setattr(cells, "judged", lambda setup, folder: calls.append(folder) or {"audited": None})
    monkeypatch.setattr(cells, "archive", lambda folder, into: folder)
    monkeypatch.setattr(cells.record, "read_summary", lambda folder: {})
    cells.finished((*SMALL[:-1], f"audit={str(asked).lower()}"), 1)
    assert len(calls) == 1 + asked


def test_a_run_by_seeds_is_the_run(results):
    summary, copy = cells.by_seed(SMALL, 1)
    assert list((results / "measured").iterdir()) == [copy]  # the seeds are no longer there
    again, _ = cells.finished(SMALL, 1)
    assert again == summary
    for old in (results / "measured").iterdir():
        old.rename(results / old.name)
    whole, other = cells.finished((*SMALL, f"results={results / 'direct'}"), 1)
    assert read_rows(results / copy.name) == read_rows(other)
    for name in ("standard", "robust", "null", "undefended", "per_seed", "ties", "caveats"):
        assert whole[name] == summary[name]


def test_a_run_that_grows_is_the_run(results):
    """Two images, then two more: the rows of the four, and the first two are archived no longer."""
    _, first = cells.grown(SMALL, 2, 0, 1)
    summary, copy = cells.grown(SMALL, 4, 2, 1)
    assert list((results / "measured").iterdir()) == [copy]
    assert first != copy
    rows = read_rows(copy)
    shutil.rmtree(results / "measured")
    shutil.rmtree(results / "runs")
    again, other = cells.finished((*SMALL, "protocol.images=4"), 1)
    assert read_rows(other) == rows
    assert again["robust"] == summary["robust"]


def test_a_run_that_was_stopped_goes_on(results, monkeypatch):
    """The rows of its first seed are kept, because the same code made them."""
    setup = compose.setup(*SMALL, "workers=1")
    folder = results / "runs" / run_key(setup.config)
    merge = record.merge

    def stop(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(record, "merge", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.judged(setup, folder)
    monkeypatch.setattr(record, "merge", merge)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert before
    cells.finished(SMALL, 1)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")} == before
    assert not list(folder.glob("old-*"))
