"""What the tables of compared runs are made of, on predictions made by hand."""

import claim
import numpy as np
import pandas as pd
import pytest
import strongest
import torch
from cells import scores
from safetensors.torch import save_file

from dp.output.archived import arrays_of
from dp.output.run_files import VERDICTS
from dp.runs.build import build
from tests.helpers.compose import composed
from tests.helpers.rows import whole_row


def row(i: int, seed: int, adv: list[int], seen: list[int], arm: str = "defended") -> dict:
    return whole_row(arm, seed, i, label=3, adv=adv, seen=seen, adv_vote=adv[0])


def summary(in_loop: bool, rule: str) -> dict:
    judge = {"in_loop": True} if in_loop else None
    return {"config": {"protocol": {"judge": judge, "report": [rule]}}, "seen": {}}


def test_scores_follow_the_protocols_rule_and_side(tmp_path):
    rows = [row(7, 1, [3, 3], [3, 0]), row(7, 2, [3, 0], [0, 0]), row(2, 1, [0, 3], [3, 3]), row(2, 2, [0, 0], [3, 3])]
    rows += [row(i, seed, [0, 0], [0, 0], arm="null") for i in (2, 7) for seed in (1, 2)]
    save_file(arrays_of(rows), tmp_path / VERDICTS)
    found = scores(summary(False, "average"), tmp_path)
    assert found.loc[7].tolist() == [1.0, 0.5]
    assert found.loc[2].tolist() == [0.5, 0.0]
    assert scores(summary(False, "vote"), tmp_path).loc[2].tolist() == [0.0, 0.0]
    assert scores(summary(True, "average"), tmp_path).loc[7].tolist() == [0.5, 0.0]  # by the in-loop samples


def test_contrast_is_second_minus_first_over_the_same_images():
    """20 images: the second is right on 10 that the first has wrong, wrong on 2 that the first has right."""
    first, second = np.repeat([0.0, 1.0], [12, 8]), np.repeat([1.0, 0.0, 1.0], [10, 4, 6])
    found = claim.contrast(pd.DataFrame({1: first}), pd.DataFrame({1: second}))
    assert found["difference"] == pytest.approx(40)
    assert found["low"] < 40 < found["high"]
    assert found["p"] == pytest.approx(2 * sum([1, 12, 66]) / 2**12)  # at most 2 of 12, both sides
    shares = pd.DataFrame({1: first / 2})
    assert claim.contrast(shares, pd.DataFrame({1: second}))["p"] is None  # shares are no decisions


def test_only_a_difference_beyond_its_interval_is_stronger():
    union, weak = np.full(40, 0.5), np.full(40, 0.75)
    strong = np.where(np.arange(40) % 2, 0.0, 0.5)
    assert strongest.against(weak, union).startswith("+25.0")
    assert "STRONGER" not in strongest.against(weak, union)
    assert strongest.against(strong, union).endswith("STRONGER")
    assert "STRONGER" not in strongest.against(np.where(np.arange(40) % 2, 0.0, 1.0), union)  # no difference at all


def test_calibration_uses_images_that_no_run_uses(monkeypatch):
    """A defense that always says 3 is right as often as there are threes among them."""
    used = []

    def three(model, x, ids, seed, stage, samples, width, rng):
        used.extend(ids)
        return torch.nn.functional.one_hot(torch.full((len(x), samples), 3), 10).float()

    monkeypatch.setattr(claim, "fresh_samples", three)
    found = claim.standard(("purifier=none",))
    judged = build(composed(claim.SCALED)).subset.ids.tolist()
    everyone = build(composed("protocol.images=512")).subset
    assert len(judged) == 128
    assert sorted([*used, *judged]) == sorted(everyone.ids.tolist())
    labels = dict(zip(everyone.ids.tolist(), everyone.y.tolist(), strict=True))
    assert found == pytest.approx(sum(labels[i] == 3 for i in used) / 384)
