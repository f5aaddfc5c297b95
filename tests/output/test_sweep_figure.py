"""The figure of a sweep: what was swept decides its form, and every accuracy is that of its run's summary."""

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from dp.output import sweep_figure


def summary(standard: float, robust: float) -> dict:
    figures = {side: {"single": {"value": v, "wilson95": [v - 5, v + 3], "n": 4}} for side, v in (("standard", standard), ("robust", robust))}  # fmt: skip  # noqa: E501
    config = {
        "choices": {"dataset": "digits", "purifier": "hetero", "attack": "pgd_eot", "protocol": "default"},
        "threat_model": {"norm": "linf", "eps": "32/255"},
        "protocol": {"report": ["single"], "judge": None},
    }
    return {**figures, "config": config, "per_seed": [1, 2], "caveats": {"in_loop": None}}


def run(robust: float | None, *words: str) -> dict:
    done = None if robust is None else summary(99.0, robust)
    return {"overrides": ["dataset=digits", *words], "summary": done, "error": None if done else "need t_s <= t_l"}


def curves(axis) -> list[np.ndarray]:
    return [c.lines[0].get_xydata() for c in axis.containers if isinstance(c, ErrorbarContainer)]


def test_one_number_is_a_curve_in_its_order():
    runs = [run(60.0, "purifier.tau=0.8"), run(70.0, "purifier.tau=1/2"), run(None, "purifier.tau=9")]
    made = sweep_figure.figure(runs)
    assert made is not None
    (axis,) = made.axes
    standard, robust = curves(axis)
    assert robust.tolist() == [[0.5, 70.0], [0.8, 60.0]]
    assert standard[:, 1].tolist() == [99.0, 99.0]
    assert axis.get_xlabel() == "purifier.tau"
    assert "1 of the runs failed" in made.get_suptitle().replace("\n", " ")


def test_two_numbers_are_maps():
    cells = {(0.2, 0.05): 50.0, (0.3, 0.05): 60.0, (0.3, 0.1): 70.0}
    made = sweep_figure.figure([run(v, f"purifier.t_l={a}", f"purifier.t_s={b}") for (a, b), v in cells.items()])
    assert made is not None
    _, robust, *_ = made.axes
    assert np.ma.filled(robust.images[0].get_array(), np.nan) == pytest.approx(
        np.array([[50.0, 60.0], [np.nan, 70.0]]), nan_ok=True
    )
    assert [text.get_text() for text in robust.get_xticklabels()] == ["0.2", "0.3"]


@pytest.mark.parametrize("words", [("purifier=a", "purifier=b"), ("t=1", "t=[1,2]"), ("a=1", "b=1")])
def test_other_words_are_a_list(words):
    made = sweep_figure.figure([run(50.0, words[0]), run(60.0, words[1])])
    assert made is not None
    (axis,) = made.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == list(words)
    assert curves(axis)[1][:, 0].tolist() == [50.0, 60.0]


@pytest.mark.parametrize("runs", [[], [run(50.0, "t=1")], [run(50.0, "t=1"), run(None, "t=2")]])
def test_fewer_than_two_finished_runs_are_no_figure(runs, tmp_path):
    assert sweep_figure.draw(runs, tmp_path / "a") == []
    assert not list(tmp_path.iterdir())
