"""The numbers of docs/figures.md are those of the data from which the figures are drawn."""

from pathlib import Path

import pytest

from dp.figures import drawn, fig8_cost, stored

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "figures.md").read_text().split())


def data(name: str) -> dict:
    return stored.read(name, ROOT / stored.FOLDER)


def test_every_figure_is_on_the_page():
    assert all(f"`{name}`" in PAGE for name in drawn.FIGURES)


def test_figure_3():
    found = data("fig3_resampling")
    jumps = found["jumps"].tolist()
    single, multi = (found[f"{form}_seam"][jumps.index(jump), 0] for form, jump in (("single", 10), ("multi", 5)))
    nfe = found["single_nfe"][jumps.index(10)], found["multi_nfe"][jumps.index(5)]
    for words in (
        f"(the original images: {found['original_seam'][0]:.2f})",
        f"a seam of {single:.2f}, multi-step resampling with U = 5 one of {multi:.2f}",
        f"It needs {nfe[0]} network evaluations, the other {nfe[1]}",
    ):
        assert words in PAGE


def test_figure_8():
    found = data("fig8_cost")
    at = {form: fig8_cost.cost(found, form, "store", 20) for form in ("single", "multi")}
    again = {form: fig8_cost.cost(found, form, "recompute", 20) for form in ("single", "multi")}
    time, memory = fig8_cost.saved(found)
    assert at["single"].measured
    assert not at["multi"].measured
    assert not again["multi"].measured
    largest = max(c.gigabytes for c in (*at.values(), *again.values()))
    assert largest < fig8_cost.LIMIT
    for words in (
        f"{time:.0f} % less time and {memory:.0f} % less memory",
        f"{at['single'].seconds:.0f} s and {at['single'].gigabytes:.2f} GB",
        f"{at['multi'].seconds:.0f} s and {at['multi'].gigabytes:.1f} GB",
        f"{again['single'].seconds:.0f} s and {again['single'].gigabytes:.2f} GB",
        f"{again['multi'].seconds:.0f} s and {again['multi'].gigabytes:.2f} GB",
    ):
        assert words in PAGE


def test_figure_9():
    found = data("fig9_distances")
    names = stored.lines(found["names"])

    def shown(side: str, name: str, spread: bool = False) -> str:
        value, low, high = found[side][names.index(name)]
        return f"{value:.2f} ({low:.2f} to {high:.2f})" if spread else f"{value:.2f}"

    for words in (
        f"it is: {shown('clean', 'hetero', True)}, against {shown('clean', 'DiffPure, t = 0.2')} for uniform DiffPure",
        f"it is not: {shown('attacked', 'hetero', True)}, against {shown('attacked', 'DiffPure, t = 0.2')} for uniform",
        f"{shown('attacked', 'Lee and Kim')} for Lee and Kim",
    ):
        assert words in PAGE


@pytest.mark.parametrize(
    ("rule", "words"), [("worst", "between {:.1f} and {:.1f} %"), ("vote", "leaves {:.1f} to {:.1f} %")]
)
def test_more_samples(rule, words):
    last = data("samples")[rule][:, -1, 0]
    assert words.format(last.min(), last.max()) in PAGE
