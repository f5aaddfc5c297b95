"""The committed table of killed runs: every attack of the study, equal rows, and little lost."""

import io

import kills
import pandas as pd
import pytest


def table() -> pd.DataFrame:
    """The committed table, by attack."""
    lines = [line for line in kills.TABLE.read_text().splitlines() if line.startswith("| ")]
    frame = pd.read_csv(io.StringIO("\n".join(line.strip("|") for line in lines if "---" not in line)), sep="|")
    return frame.rename(columns=str.strip).map(lambda cell: cell.strip() if isinstance(cell, str) else cell)


def test_every_attack_of_the_study_is_killed_twenty_times_and_loses_little():
    found = table().set_index("attack")
    assert set(found.index) == set(kills.ATTACKS)
    assert (found["kills"] == 20).all()
    assert (found["rows"] == "equal").all()
    assert (found["ratio"] <= 1.3).all()
    assert found["ratio"].tolist() == pytest.approx(found["with kills"] / found["evaluations, undisturbed"], abs=6e-4)
