"""What others measured of the same defenses: form, ranges, and that no decision is kinder than one it contains."""

import csv
from itertools import combinations

from dp.output.published import PUBLISHED, all_rows, own_rules
from dp.statistics.metrics import RULES

with (PUBLISHED / "reevaluations.csv").open(newline="") as text:
    ROWS = list(csv.DictReader(text, strict=True))


def test_every_number_has_a_source_and_says_whether_it_was_read_there():
    assert {row["by"].split()[0] for row in ROWS} == {"Lee", "DiffBreak", "DiffHammer", "DiffAttack", "MEFA"}
    methods = {row["method"] for row in all_rows()}
    for row in ROWS:
        assert row["method"] in methods, row
        assert row["source"], row
        assert row["unverified"] in ("true", "false"), row
        assert 0 <= float(row["robust"]) <= 100, row
        assert row["clean"] == "" or float(row["robust"]) <= float(row["clean"]) <= 100, row
        assert row["norm"] in ("linf", "l2", "low_frequency"), row


def test_no_number_stands_twice_and_the_worst_of_samples_is_below_their_average_and_vote():
    key = ("method", "dataset", "classifier", "norm", "eps", "attack", "by", "source", "note")
    for one, other in combinations(ROWS, 2):
        if all(one[k] == other[k] for k in key):
            assert one["decision"] != other["decision"], one
            kinds = {each["decision"].split()[0]: float(each["robust"]) for each in (one, other)}
            if "worst" in kinds:
                assert kinds["worst"] == min(kinds.values()), (one, other)


def test_the_rule_of_each_method_is_one_that_dp_knows():
    methods = {row["method"] for row in all_rows()}
    assert set(own_rules()) <= methods
    assert {rule for rule, _ in own_rules().values()} <= set(RULES)
    assert own_rules()["hetero"] == ("mean_logits", 20)
