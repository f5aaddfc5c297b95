"""The study of all defenses: its runs compose, its figures are the rows' own, and every purifier has a line."""

import itertools

import defenses
import numpy as np
import pytest

from dp.runs.validate import check_setup
from tests.helpers.compose import options, plug_ins, setup

OURS = {"hetero_box", "hetero_fixed", "hetero_official_rev_b", "hetero_random"}  # controls and variants
WITHOUT = {"impure_vit", "menet_soft"}  # for ImageNet alone; without a classifier of its own


def test_the_runs_compose_and_none_is_made_twice():
    made = [defenses.overrides(method, side) for method in defenses.METHODS for side in defenses.SIDES]
    runs = [given for given in made if given is not None]
    assert len({*runs}) == len(runs)
    for given in runs:
        whole = setup(*given)
        check_setup(whole)
        protocol = whole.config["protocol"]
        assert protocol["votes"] == 20
        by_decisions = "attack=decision" in given
        images = defenses.FEW if by_decisions else defenses.IMAGES
        assert protocol["images"] == (defenses.MANY if given[-1] == "protocol.images=512" else images)
        assert len(protocol["seeds"]) == (1 if by_decisions else defenses.SEEDS)


def test_the_leaders_run_on_more_images_when_all_of_strict_is_there(monkeypatch):
    some = [method for method in defenses.METHODS if not {*defenses.BARE} & {*method.overrides}]
    at = next(method for method in defenses.METHODS if "classifier=digits_at" in method.overrides)
    ranked = [some[4], at, defenses.BASELINE, *(some[k] for k in (9, 3, 7, 2, 6, 8))]
    reached = {defenses.overrides(method, "strict"): 90.0 - k for k, method in enumerate(ranked)}
    monkeypatch.setattr(
        defenses, "finished", lambda given: ({"robust": {"average": {"value": reached.get(given, 10.0)}}}, None)
    )
    assert defenses.leaders() == []  # not all runs are archived
    monkeypatch.setattr(defenses, "archived", lambda given: True)
    assert defenses.leaders() == [some[k] for k in (4, 9, 3, 7, 2)]
    assert defenses.methods_of("many") == (defenses.BASELINE, *(some[k] for k in (4, 9, 3, 7, 2)))


def test_every_purifier_has_a_line():
    shown = {word.partition("=")[2] for m in defenses.METHODS for word in m.overrides if word.startswith("purifier=")}
    assert shown == {*options("purifier")} - {*plug_ins("purifier")} - OURS - WITHOUT


def test_scores_are_averages_over_seeds_and_samples():
    rows = [
        {"arm": "defended", "id": 7, "seed": 1, "label": 3, "adv": [3, 3, 1, 1]},
        {"arm": "defended", "id": 7, "seed": 2, "label": 3, "adv": [3, 3, 3, 3]},
        {"arm": "null", "id": 7, "seed": 1, "label": 3, "adv": [0, 0, 0, 0]},
    ]
    assert defenses.averages(rows).to_dict() == {7: pytest.approx(0.75)}


def one(method, side, average):
    figures = dict.fromkeys(("standard_single", "standard_average", "standard_vote", "single", "vote"), 90.0)
    return {
        **{
            "method": method,
            "side": side,
            "seconds": 1.0,
            "worker": 384.0,
            **figures,
            "average": average,
            "worst": 40.0,
        },
        **{"low": average - 5, "high": average + 5, "null": 97.0, "nfe": 5, "gradient": "exact", "audit": "unaudited"},
        **{"gain": -1.0, "gain_low": -2.0, "gain_high": 0.5, "command": "python run.py"},
    }


def test_table_and_figure(tmp_path):
    names = [method.name for method in defenses.METHODS[:5]]
    found = [
        one(name, side, a) for a, name in zip(np.linspace(50, 80, 5), names, strict=True) for side in defenses.SIDES
    ]
    words = defenses.text(found, left=3)
    assert f"| {names[0]} | 90.0 | 90.0 | 50.0 | 45.0 - 55.0 | 90.0 | 90.0 | 40.0 | -1.0 | -2.0 to +0.5 |" in words
    k = names.index(defenses.BASELINE.name)
    average = 50 + 7.5 * k
    interval = f"{average - 5} - {average + 5}"
    assert f"| {names[k]} | 90.0 | 90.0 | {average} | {interval} | 90.0 | 90.0 | 40.0 |  |  |" in words
    assert "3 runs are not measured yet" in words
    defenses.draw(tmp_path / "a.png", found)
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_decisions_are_compared_with_the_first_seed_of_the_own_strict_run(monkeypatch):
    menet = next(method for method in defenses.METHODS if method.rough and method.name == "ME-Net")
    wide, scores = defenses.compared(menet, "strict"), defenses.compared(menet, "decision")
    assert wide is None or wide.index.equals(scores.index)  # the baseline's images
    rows = defenses.read_rows(defenses.finished(defenses.overrides(menet, "strict"))[1])
    own = [row for row in rows if row["arm"] == "defended" and row["seed"] == 2024]
    assert scores.mean() == pytest.approx(np.mean([np.mean(np.array(row["adv"]) == row["label"]) for row in own]))
    assert len(scores) == len(own) == defenses.IMAGES


def test_numbers_in_the_figure_do_not_cover_each_other():
    taken = []
    for y in (66.0, 66.1, 66.3, 66.0, 90.0):
        taken.append(defenses.free_place(98.0, y, taken))
    heights = sorted(y for _, y in taken)
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 2.5 - 1e-9
    assert taken[0] == (98.08, 66.0)
    assert taken[-1] == (98.08, 90.0)
