"""A wrong key, a missing key, a wrong type: said before anything runs."""

import copy

import pytest

from dp.runs.compose import arguments
from dp.runs.validate import check_call
from dp.spelling import near_matches
from tests.helpers.compose import composed


@pytest.mark.parametrize(
    ("group", "change", "said"),
    [
        ("purifier", {"t_ll": 0.2}, r"unknown key purifier.t_ll \(did you mean t_l"),
        ("purifier", {"t_l": None}, r"need purifier.t_l of type float, got None"),
        ("purifier", {"steps": 2.5}, "need purifier.steps of type int"),
        ("purifier", {"eq8_literal": 1}, "need purifier.eq8_literal of type bool"),
        ("attack", {"iterations": "ten"}, "need attack.iterations of type int, got 'ten'"),
        ("attack", {"step_size": "big"}, "need attack.step_size of type float or NoneType"),
        ("attack", {"_target_": "dp.attacks.pgd_eot.PGDD"}, "need attack._target_ to name a function or class"),
    ],
)
def test_check_call_names_the_key(group, change, said):
    node = {**arguments(composed()[group]), **change}
    with pytest.raises(ValueError, match=said):
        check_call({group: node})


def test_missing_key_of_a_partial():
    node = arguments(composed()["purifier"])
    del node["tau"]
    with pytest.raises(ValueError, match=r"missing key purifier\.tau"):
        check_call({"purifier": node})


def test_nested_nodes_are_checked():
    config = copy.deepcopy(composed())
    config["classifier"]["net"]["net"]["widenn"] = 3
    with pytest.raises(ValueError, match=r"classifier.net.net.widenn \(did you mean widen"):
        check_call({"classifier": config["classifier"]})


def test_near_matches():
    assert near_matches("hetro", ["hetero", "diffpure"]) == " (did you mean hetero?)"
    assert near_matches("zzz", ["hetero"]) == ""
