"""The harness: a row depends on its image alone, noise is never shared, and the returned image is scored."""

import json

import pytest
import torch

from dp.evaluation.evaluate import Evaluation, evaluate
from dp.evaluation.rows import Group
from dp.evaluation.slots import Slots
from dp.output.record import Writer, merge, read_rows
from dp.rng import Streams
from dp.runs.build import build
from tests.helpers.compose import TINY, composed


def with_subset(evaluation: Evaluation, subset) -> Evaluation:
    return Evaluation(**{**vars(evaluation), "subset": subset})


def recorded(folder, *evaluations: Evaluation) -> bytes:
    """images.jsonl of these evaluations, one shard each."""
    folder.mkdir()
    for shard, evaluation in enumerate(evaluations):
        writer = Writer(folder, str(shard))
        for group in evaluate(evaluation):
            writer.write(group)
        writer.close()
    merge(folder)
    return (folder / "images.jsonl").read_bytes()


def test_rows_are_byte_equal_across_order_split_and_padding(tmp_path):
    evaluation = build(composed(*TINY, "protocol.images=7"))  # 4 batch slots: the last batch is padded
    subset = evaluation.subset
    whole = recorded(tmp_path / "whole", evaluation)
    order = torch.tensor([3, 6, 0, 5, 1, 4, 2])
    assert recorded(tmp_path / "order", with_subset(evaluation, subset.select(order))) == whole
    halves = [with_subset(evaluation, subset.select(slice(k, None, 2))) for k in (0, 1)]
    assert recorded(tmp_path / "halves", *halves) == whole
    rows = [json.loads(line) for line in whole.splitlines()]
    assert len(rows) == 7 * 2 * 3
    assert [(r["arm"], r["seed"], r["id"]) for r in rows] == sorted((r["arm"], r["seed"], r["id"]) for r in rows)


def test_other_numbers_of_slots_have_the_same_noise():
    """Rounding differs, noise does not: attacked images agree closely although every call has another size."""
    groups: dict[int, Group] = {}
    for lanes in (3, 4):
        evaluation = build(composed(*TINY, "protocol.images=3", "attack.iterations=1", f"dataset.lanes={lanes}"))
        groups[lanes] = evaluation.run(evaluation.plan()[0])
    ids = [1081, 1707, 927]
    x = torch.zeros(3, 1, 16, 16)
    four = Streams([*ids, 927], 5, "attack").randn_like(torch.zeros(4, 1, 16, 16))
    assert torch.equal(Streams(ids, 5, "attack").randn_like(x), four[:3])
    assert (groups[3].x_adv - groups[4].x_adv).abs().gt(1e-4).float().mean() < 0.01
    torch.testing.assert_close(groups[3].clean, groups[4].clean, rtol=1e-3, atol=1e-3)


def test_plan_leaves_out_what_is_done(config):
    evaluation = build(config)
    assert sum(len(u.ids) for u in evaluation.plan()) == 4 * 2 * 3
    done = {("defended", 5, i) for i in evaluation.subset.ids.tolist()}
    left = {(u.arm, u.seed) for u in evaluation.plan(done)}
    assert left == {(a, s) for a in ("defended", "undefended", "null") for s in (5, 6)} - {("defended", 5)}
    one = evaluation.plan(done | {("null", 6, int(evaluation.subset.ids[0]))})
    assert [len(u.ids) for u in one if (u.arm, u.seed) == ("null", 6)] == [3]


def test_attack_and_scoring_share_no_noise(config, monkeypatch):
    """No (seed, stage) is used twice between attack, clean and adversarial scoring, and null scoring."""
    used: dict[str, set] = {}
    drawn = Streams._drawn

    def watch(self, like, normal):
        used.setdefault(stage["now"], set()).update(
            (key, call) for key, call in zip(self.keys, self.calls, strict=True)
        )
        return drawn(self, like, normal)

    stage = {"now": ""}
    attack, score = Slots.run, Evaluation._score
    monkeypatch.setattr(Streams, "_drawn", watch)
    count = iter(range(100))

    def attacking(self, *args):
        stage["now"] = f"attack {next(count)}"
        return attack(self, *args)

    def scoring(self, *args):
        stage["now"] = f"score {next(count)}"
        return score(self, *args)

    monkeypatch.setattr(Slots, "run", attacking)
    monkeypatch.setattr(Evaluation, "_score", scoring)
    evaluation = build(config)
    for unit in evaluation.plan():
        if unit.seed == 5 and unit.arm != "undefended":
            evaluation.run(unit)
    used.pop("", None)  # the dry run while building
    sets = list(used.values())
    assert len(sets) == 5  # two attacks (one null), clean, adv, null-adv
    for i, one in enumerate(sets):
        assert all(not one & other for other in sets[i + 1 :])


def test_row_holds_every_sample_and_the_measured_distance(config):
    evaluation = build(config)
    unit = evaluation.plan()[0]
    group = evaluation.run(unit)
    x = evaluation.subset.x[[evaluation.subset.ids.tolist().index(i) for i in unit.ids]]
    for k, row in enumerate(group.rows):
        assert group.clean is not None
        assert row["clean"] == group.clean[k].argmax(1).tolist()
        assert row["adv"] == group.adv[k].argmax(1).tolist()
        assert row["distance"] == pytest.approx((group.x_adv[k] - x[k]).abs().max().item(), abs=1e-7)
        assert row["distance"] <= 32 / 255 + 1e-6
        assert row["nfe"] == 7
    model = evaluation.arms["defended"].scored
    with torch.no_grad():
        again = model.logits(group.x_adv, Streams(unit.ids, unit.seed, "adv"), 3)
    assert torch.equal(again.transpose(0, 1), group.adv)


def test_undefended_falls_and_null_does_not(config):
    """An attack of twenty steps breaks nearly all images of the bare classifier, random noise of its size few."""
    evaluation = build(
        composed(*TINY, "protocol.images=16", "attack.iterations=20", "dataset.lanes=16", "purifier=none")
    )
    right = {arm: 0 for arm in evaluation.arms}
    for unit in evaluation.plan():
        if unit.seed == 5:
            right[unit.arm] += sum(r["adv"][0] == r["label"] for r in evaluation.run(unit).rows)
    assert right["undefended"] == right["defended"] <= 1
    assert right["null"] >= 14


def test_bad_images_and_settings_are_refused(config):
    evaluation = build(config)
    x = evaluation.subset.x.clone()
    x[1, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match=f"NaN.*{int(evaluation.subset.ids[1])}"):
        with_subset(evaluation, evaluation.subset._replace(x=x))
    with pytest.raises(ValueError, match="votes"):
        Evaluation(**{**vars(evaluation), "votes": 0})
    with pytest.raises(ValueError, match="seeds that differ"):
        Evaluation(**{**vars(evaluation), "seeds": [1, 1]})


def test_nan_logits_are_an_error_not_a_decision(config):
    evaluation = build(config)
    classifier = evaluation.arms["undefended"].scored.classifier
    classifier.net.fc.bias.data[3] = torch.nan  # pyright: ignore
    with pytest.raises(ValueError, match="NaN"):
        evaluation.run(evaluation.plan()[0])


def test_resumed_rows_fill_the_gaps(tmp_path, config):
    """After half of the units a second process does the rest, and nothing twice."""
    evaluation = build(config)
    units = evaluation.plan()
    writer = Writer(tmp_path, "a")
    for unit in units[:3]:
        writer.write(evaluation.run(unit))
    writer.close()
    groups = list(evaluate(evaluation, read_rows(tmp_path)))
    assert [g.unit for g in groups] == units[3:]
