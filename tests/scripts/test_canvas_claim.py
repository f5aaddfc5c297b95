"""The study of canvas: its cells compose, their order, and its arithmetic on scores made by hand."""

import canvas_cells
import canvas_claim
import canvas_report
import cells
import numpy as np
import pandas as pd
import pytest
import torch
from canvas_cells import FIRST, PLAIN, SEEDS, WORLDS, overrides, rows_of, seeded
from canvas_figures import along, gain, lines
from convergence import Budget

from dp.output import record
from dp.runs.build import attacker
from dp.runs.keys import run_key
from dp.runs.validate import check_setup
from tests.helpers.compose import composed, setup


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    return tmp_path


def test_the_main_question_comes_first(monkeypatch):
    """128 images of six rows under PGD, one seed after another; then everything else."""
    monkeypatch.setattr(canvas_cells, "held", lambda given, seed, images: 0)
    found = canvas_cells.parts({}, Budget())
    first = found[: 6 * 4 * len(SEEDS)]
    names = ["uniform, t = 0.1", "inside, ratio 2", "outside, ratio 2", "random, as many as inside, ratio 2"]
    names += ["inside the true box, ratio 2", "outside the true box, ratio 2"]
    assert [part.row.name for part in first[:6]] == names
    assert [part.images for part in first[:24]] == [32] * 6 + [64] * 6 + [96] * 6 + [128] * 6
    assert [part.seed for part in first] == [seed for seed in SEEDS for _ in range(24)]
    assert {part.attack for part in first} == {PLAIN}
    assert len({*found}) == len(found)


def cases():
    """A row of every world, every kind of row, and every kind of attack."""
    rows = rows_of(FIRST)
    yield from ((world, rows_of(world)[1], PLAIN) for world in WORLDS)
    yield from ((FIRST, row, PLAIN) for row in (rows[0], rows[3], rows[5], rows[7], canvas_cells.OFFICIAL, rows[-1]))
    hard = (canvas_cells.CONFINED[1], canvas_cells.THROUGH_MASK[0], canvas_cells.DECISION)
    yield from ((FIRST, rows[1], attack) for attack in (*hard, canvas_cells.strict(True, Budget(2, 4))))


@pytest.mark.parametrize(("world", "row", "attack"), [*cases()], ids=lambda one: one.name)
def test_rows_and_attacks_compose(world, row, attack):
    whole = setup(*seeded(overrides(world, row, attack, 0.2), 2024), f"protocol.images={attack.images}")
    check_setup(whole)
    attacker(whole.config)
    assert (whole.config["protocol"]["votes"], whole.config["protocol"]["seeds"]) == (20, [2024])
    purifier = whole.config["purifier"]
    if row.ratio:
        assert purifier["t_l"] == pytest.approx(row.ratio * purifier["t_s"])
        assert (purifier["steps"], purifier["strong_steps"]) == (4, 2)


def test_a_key_is_that_of_the_composed_run():
    given = overrides(FIRST, rows_of(FIRST)[1], PLAIN, 0.2)
    whole = composed(*seeded(given, 2025), "protocol.images=64")
    assert canvas_cells.key(given, 2025, 64) == run_key(whole)


def test_what_is_archived_is_not_made_again(results, monkeypatch):
    row = rows_of(FIRST)[0]
    monkeypatch.setattr(canvas_cells, "stages", lambda budget: [(FIRST, (row,), (PLAIN,), seed) for seed in SEEDS[:2]])
    folder = results / "measured" / canvas_cells.key(overrides(FIRST, row, PLAIN, None), SEEDS[0], 64)
    folder.mkdir(parents=True)
    (folder / record.SUMMARY).write_text("{}")
    left = [(part.seed, part.before, part.images) for part in canvas_cells.parts({}, None)]
    assert left[:2] == [(SEEDS[0], 64, 96), (SEEDS[0], 96, 128)]
    assert [before for seed, before, _ in left if seed == SEEDS[1]] == [0, 32, 64, 96]


def test_the_factors_of_strict_reach_every_attack():
    plain, more = (attacker(composed("dataset=canvas", *canvas_cells.strict(True, b).overrides))[0] for b in (Budget(), Budget(2, 4)))  # fmt: skip  # noqa: E501
    assert more == plain.with_budget(iterations=lambda n: 2 * n, eot=lambda n: 4 * n)


def series(*values: float) -> pd.Series:
    return pd.Series(values, index=range(len(values)))


def test_a_difference_is_over_the_images_that_both_have():
    first, second = series(*[0.0] * 10, *[1.0] * 10, 0.0, 0.0), series(*[1.0] * 5, *[0.0] * 5, *[1.0] * 10)
    difference, low, high = gain(first, second)
    assert difference == pytest.approx(25)
    assert 0 < low < 25 < high < 50


def test_uniforms_curve_is_interpolated_image_by_image():
    """Standard .9 and .7, attacked (.4, .2) and (.6, .6): at .85 a quarter of the way to the second."""
    curve = [(series(0.9, 0.9), series(0.4, 0.2)), (series(0.8, 0.6), series(0.6, 0.6))]
    found = along(curve, 0.85, pd.Index([0, 1]))
    assert found is not None
    assert found.tolist() == pytest.approx([0.45, 0.3])
    assert along(curve, 0.95, pd.Index([0, 1])) is None
    assert along(curve[:1], 0.9, pd.Index([0, 1])) is None
    only = along(curve, 0.9, pd.Index([0]))  # on the first image the curve goes from .9 to .8
    assert only is not None
    assert only.tolist() == pytest.approx([0.4])


def cell(clean: list[float], adv: list[float]) -> dict:
    frames = {k: pd.DataFrame({2024: v, 2025: v}) for k, v in (("clean", clean), ("adv", adv))}
    return {**frames, "null": 80.0, "seconds": 60.0, "nfe": 4, "command": "python run.py"}


def made() -> dict:
    """Outside is 25 points above uniform on the first networks, 50 on the next pair; on the third nothing is there."""
    reference, weaker = rows_of(FIRST)[0].name, canvas_cells.uniform(0.15).name
    outside, pairs = canvas_cells.OUTSIDE[0].name, canvas_cells.PAIRS
    return {
        (FIRST.name, reference, "PGD"): cell([1.0, 1.0, 1.0, 0.8], [0.5, 0.0, 0.0, 0.5]),
        (FIRST.name, weaker, "PGD"): cell([0.8, 0.8, 0.8, 0.8], [0.9, 0.4, 0.4, 0.9]),
        (FIRST.name, outside, "PGD"): cell([0.9, 0.9, 0.9, 0.8], [1.0, 0.5, 0.0, 0.5]),
        (pairs[0].name, reference, "PGD"): cell([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]),
        (pairs[0].name, outside, "PGD"): cell([1.0, 1.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]),
    }


def test_the_lines_of_made_up_cells():
    by = {(line["networks"], line["defense"]): line for line in lines(made())}
    outside = by[FIRST.name, canvas_cells.OUTSIDE[0].name]
    assert outside["gain"] == pytest.approx(25)
    assert outside["standard"] == pytest.approx(87.5)
    share = (0.95 - 0.875) / (0.95 - 0.8)  # uniform has .95 and .8
    assert outside["corrected"] == pytest.approx(100 * (0.5 - (0.25 + 0.4 * share)))
    assert (outside["trainings"], outside["over_trainings"]) == (2, pytest.approx(37.5))
    assert outside["trainings_std"] == pytest.approx(np.std([25, 50], ddof=1))
    uniform = by[FIRST.name, rows_of(FIRST)[0].name]
    assert "gain" not in uniform
    assert "corrected" not in uniform
    assert "trainings" not in by[canvas_cells.PAIRS[0].name, canvas_cells.OUTSIDE[0].name]


def test_the_page_has_each_spread_in_its_own_column():
    calibrations = {FIRST.name: {"inside, ratio 2": {"t": 0.2, "standard": 86.0}}}
    part = canvas_cells.Part(FIRST, rows_of(FIRST)[0], PLAIN, 2024, 32, 0)
    transfers = [{"from": "a", "to": "b", "images": 32, "robust": 40.0}]
    page = canvas_report.text(lines(made()), transfers, calibrations, [part])
    row = next(line for line in page.splitlines() if line.startswith(f"| {canvas_cells.OUTSIDE[0].name} | PGD"))
    found = [text.strip() for text in row.strip("|").split("|")]
    assert len(found) == len(canvas_report.HEAD)
    named = dict(zip(canvas_report.HEAD, found, strict=True))
    assert (named["minus uniform"], named["mean over trainings"]) == ("+25.0", "+37.5")
    assert "1 parts are not measured yet" in page


def test_calibration_uses_images_that_no_run_uses(monkeypatch):
    """A defense that always says 3 is right as often as there are threes among the last 384."""
    used = []

    def three(model, x, ids, seed, stage, samples, width, rng):
        used.extend(ids)
        return torch.nn.functional.one_hot(torch.full((len(x), samples), 3), 10).float()

    monkeypatch.setattr(canvas_claim, "fresh_samples", three)
    found = canvas_claim.standard(("dataset=canvas", "purifier=none"))
    assert used == [*range(128, 512)]
    labels = canvas_report.held_out().label[128:]
    assert found == pytest.approx(float((labels == 3).mean()))


def test_a_row_is_matched_by_bisection_and_once(results, monkeypatch):
    """A standard accuracy of 1 - t: uniform at .1 has .9, so a matched row ends at t_l near .1."""
    asked = []

    def accuracy(given):
        asked.append(given)
        times = [float(word.partition("=")[2]) for word in given if word.startswith(("purifier.t=", "purifier.t_l="))]
        return 1 - times[0]

    monkeypatch.setattr(canvas_claim, "standard", accuracy)
    row = rows_of(FIRST)[1]
    canvas_claim.calibrate(FIRST, row)
    known = canvas_claim.calibrated(FIRST)
    assert known[row.name]["t"] == pytest.approx(0.1, abs=0.6 / 2**6)
    assert known[rows_of(FIRST)[0].name]["standard"] == pytest.approx(90)
    assert len(asked) == canvas_claim.HALVINGS + 2
    canvas_claim.calibrate(FIRST, rows_of(FIRST)[2])
    assert len(asked) == 2 * canvas_claim.HALVINGS + 3  # the reference is known
    assert canvas_claim.times()[FIRST.name].keys() == {row.name, rows_of(FIRST)[2].name}
