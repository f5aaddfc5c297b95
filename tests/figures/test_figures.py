"""The figures: their data are small, their numbers are those of archived runs, and a redraw gives the same bytes."""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from dp.commands import figures
from dp.figures import drawn, fig3_resampling, fig7_sweeps, fig8_cost, standard_robust, stored, style
from dp.output import record

ROOT = Path(__file__).parents[2]
DATA, PICTURES, MEASURED = ROOT / stored.FOLDER, ROOT / drawn.PICTURES, ROOT / "results" / "measured"
THERE = [name for name in drawn.FIGURES if stored.path_of(name, DATA).exists()]
PINNED = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def test_data_are_small_and_complete():
    """There are data of every figure."""
    assert set(drawn.FIGURES) == set(THERE)
    assert {path.stem for path in DATA.iterdir()} == set(THERE)
    for name in THERE:
        assert stored.path_of(name, DATA).stat().st_size <= 500_000
        assert str(stored.read(name, DATA)["about"])


@pytest.mark.parametrize("name", THERE)
def test_a_redraw_gives_the_committed_bytes(name, tmp_path):
    if mpl.__version__ != PINNED["matplotlib"] or np.__version__ != PINNED["numpy"]:
        pytest.skip("another version of matplotlib or numpy draws other bytes")
    for path in drawn.draw(name, DATA, tmp_path):
        assert path.read_bytes() == (PICTURES / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    "draw",
    [lambda: figures.tradeoff("digits", 128), figures.adjoint_error, figures.budget],
    ids=["tradeoff", "adjoint_error", "budget"],
)
def test_a_redraw_from_archived_runs_gives_the_committed_bytes(draw, tmp_path, monkeypatch):
    if mpl.__version__ != PINNED["matplotlib"] or np.__version__ != PINNED["numpy"]:
        pytest.skip("another version of matplotlib or numpy draws other bytes")
    monkeypatch.setattr(figures, "FIGURES", tmp_path)
    with style.looks():
        drawn_now = draw()
    assert drawn_now
    for path in drawn_now:
        assert path.read_bytes() == (PICTURES / path.name).read_bytes(), path.name


def points(axis) -> list[np.ndarray]:
    """The places of all curves with error bars of an axis, (N,2) each."""
    return [c.lines[0].get_xydata() for c in axis.containers if isinstance(c, ErrorbarContainer)]


def test_what_is_drawn_is_what_is_stored():
    data = stored.read("fig7_sweeps", DATA)
    left, middle, _, *_ = fig7_sweeps.draw(data).axes
    for curve, side in zip(points(left), ("standard", "robust"), strict=True):
        np.testing.assert_array_equal(curve[:, 1], data[f"tau_{side}"][:, 0])
    shown = {text.get_text().split("\n")[0] for text in middle.texts}
    assert shown == {f"{value:.1f}" for value in data["pairs_robust"][:, 0]}
    data = stored.read("standard_robust", DATA)
    axis, *_ = standard_robust.draw(data).axes
    places = np.concatenate(points(axis))
    assert sorted(places[:, 1]) == sorted(data["robust"][:, 0])
    data = stored.read("fig3_resampling", DATA)
    for curve, form in zip(points(fig3_resampling.draw(data).axes[0]), fig3_resampling.FORMS, strict=True):
        np.testing.assert_array_equal(curve[:, 1], data[f"{form}_seam"][:, 0])


def test_numbers_of_archived_runs_are_those_of_their_summaries():
    """Each npz names the runs that it is made of."""
    found = {}
    for name in ("standard_robust", "samples", "fig7_sweeps"):
        data = stored.read(name, DATA)
        found[name] = data, [record.read_summary(MEASURED / key) for key in stored.lines(data["runs"])]
    data, runs = found["standard_robust"]
    for side in ("standard", "robust"):
        value = [[s[side]["average"]["value"], *s[side]["average"]["wilson95"]] for s in runs]
        np.testing.assert_allclose(data[side], value, rtol=1e-6)
    data, runs = found["samples"]
    for rule in ("worst", "vote"):
        np.testing.assert_allclose(data[rule][..., 0], [s["curves"]["robust"][rule]["value"] for s in runs], rtol=1e-6)
    data, runs = found["fig7_sweeps"]
    swept = [*data["tau"], *data["pairs"], *data["t"]]
    robust = np.concatenate([data[f"{short}_robust"] for short in ("tau", "pairs", "t")])
    for value, point, summary in zip(swept, robust, runs, strict=True):
        node = summary["config"]["purifier"]
        own = [node.get("tau")], [node.get("t_l"), node.get("t_s")], [node.get("t")]
        assert any(np.allclose(value, one) for one in own if None not in one), summary["config"]["purifier"]
        assert point[0] == pytest.approx(summary["robust"]["average"]["value"])


def costs() -> dict[str, np.ndarray]:
    """A network evaluation takes 1 s and 10 MB if all is kept, 1.4 s and 1 MB if not; 8 of 10 steps are resampled."""
    cells = [("multi", "store", 1), ("multi", "store", 5), ("single", "store", 1), ("multi", "recompute", 1)]
    cells += [("multi", "recompute", 10), ("single", "recompute", 1)]
    nfe = [18 if form == "single" else 8 * jump + 2 for form, _, jump in cells]
    kept = [memory == "store" for _, memory, _ in cells]
    columns = dict(zip(("resampling", "memory", "jump"), map(np.array, zip(*cells, strict=True)), strict=True))
    return columns | {
        "nfe": np.array(nfe),
        "seconds": np.array([n * (1 if k else 1.4) for n, k in zip(nfe, kept, strict=True)]),
        "megabytes": np.array([n * (10 if k else 1) for n, k in zip(nfe, kept, strict=True)]),
        "about": np.array("nothing that was measured"),
    }


def test_costs_that_were_not_measured_are_on_the_line_and_say_so():
    data = costs()
    assert fig8_cost.cost(data, "multi", "store", 5) == (42, 0.42, True)
    assert fig8_cost.cost(data, "multi", "store", 20) == (162, pytest.approx(1.62), False)
    assert fig8_cost.cost(data, "multi", "recompute", 5) == (pytest.approx(42 * 1.4), pytest.approx(0.042), False)
    assert fig8_cost.cost(data, "multi", "recompute", 15).measured is False
    assert fig8_cost.cost(data, "single", "store", 20) == (18, 0.18, False)  # the same network calls for every U
    time, memory = fig8_cost.saved(data)
    assert time == memory == pytest.approx(100 * (1 - 18 / 162))
    seconds, _ = fig8_cost.draw(data).axes
    dashed = [line for line in seconds.get_lines() if line.get_linestyle() == "--"]
    assert [list(line.get_xdata()) for line in dashed] == [[5, 10, 15, 20], [10, 15, 20], [20], [20]]


def test_curves_differ_without_color():
    looks = [style.series(k) for k in range(len(style.COLORS))]
    assert len({look["marker"] for look in looks}) == len({str(look["linestyle"]) for look in looks}) == len(looks)


def test_the_same_arrays_are_the_same_bytes_and_large_ones_are_refused(tmp_path):
    arrays = {"a": np.arange(9.0), "about": np.array("words")}
    assert stored.packed(arrays) == stored.packed(arrays)
    (tmp_path / "one.npz").write_bytes(stored.packed(arrays))
    assert stored.read("one", tmp_path)["a"].tolist() == list(range(9))
    with pytest.raises(ValueError, match=r"need at most 500000 bytes"):
        stored.packed({"a": np.random.RandomState(0).rand(200_000)})


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 torn"])
def test_a_missing_or_torn_file_is_named_with_the_remedy(content, tmp_path):
    if content is not None:
        (tmp_path / "fig8_cost.npz").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"need \S+fig8_cost\.npz.* got .*figure_data\.py fig8_cost --write measures it"
    ):
        drawn.draw("fig8_cost", tmp_path, tmp_path)


def test_an_unknown_name_is_refused(capsys):
    assert figures.main(["fig8_costs"]) == 2
    assert "unknown figure fig8_costs" in capsys.readouterr().err
