"""A wrong key, a missing key, a wrong type: said before anything runs."""

import copy

import pytest

from dp.runs.compose import arguments, make, with_plugins
from dp.runs.validate import check_call, check_targets
from dp.spelling import near_matches
from tests.helpers.compose import composed


@pytest.mark.parametrize(
    ("group", "change", "said"),
    [
        ("purifier", {"t_ll": 0.2}, r"unknown key purifier.t_ll \(did you mean t_l"),
        ("purifier", {"t_l": None}, r"need purifier.t_l as a number, got None"),
        ("purifier", {"steps": 2.5}, "need purifier.steps as a whole number"),
        ("purifier", {"eq8_literal": 1}, "need purifier.eq8_literal as true or false"),
        ("attack", {"iterations": "ten"}, "need attack.iterations as a whole number, got 'ten'"),
        ("attack", {"step_size": "big"}, "need attack.step_size as a number or null, got 'big'"),
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


REFUSED = [
    ("os.system", "below dp, "),
    ("torch.load", "below dp, "),
    ("torch.nn.modules.module.torch.load", r"of torch\.serialization"),
    ("timm.models.load_state_dict", "below dp, "),  # it executes a pickle, too
    ("dp.commands.tables.Path.write_text", "of pathlib"),
    ("dp.runs.compose.instantiate", r"of hydra\."),
    ("dp.runs.compose.VERSION_BASE.format", "of no module"),
    ("dpx.f", "below dp, "),
    (5, "below dp, "),
]


@pytest.mark.parametrize(("target", "said"), REFUSED)
def test_a_target_that_is_not_allowed_is_refused(target, said):
    with pytest.raises(ValueError, match=rf"^need threat_model.eps._target_ .*{said}"):
        check_call({"eps": {"_target_": target}}, "threat_model")
    with pytest.raises(ValueError, match=said):
        make({"_target_": "dp.subset.Subset", "ids": [{"_target_": target}]})


def test_a_target_that_is_not_allowed_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_of_the_tests.py").write_text(
        "from pathlib import Path\nPath('imported').touch()\ndef f(): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = copy.deepcopy(composed())
    config["purifier"]["_target_"] = "evil_of_the_tests.f"
    with pytest.raises(ValueError, match=r"need purifier\._target_ below dp"):
        check_targets(config)
    assert not (tmp_path / "imported").exists()
    config["plugins"]["modules"] = ["evil_of_the_tests"]  # as if a yaml of --config-dir named it
    with pytest.raises(ValueError, match=r"unknown key purifier\."):
        check_targets(config)
    assert (tmp_path / "imported").exists()


def test_a_plugins_yaml_does_not_allow_the_whole_of_a_known_package(tmp_path):
    (tmp_path / "purifier").mkdir()
    (tmp_path / "purifier" / "m.yaml").write_text("_target_: m.f\nnet: {_target_: torch.nn.Identity}\n")
    assert with_plugins({}, [str(tmp_path)])["plugins"]["modules"] == ["m"]


@pytest.mark.parametrize("name", ["full", "bpda", "blind", "values"])
def test_a_gradient_variant_does_not_take_a_name_that_every_defense_has(name):
    config = copy.deepcopy(composed())
    config["purifier"]["gradients"][name] = {"steps": 2}
    with pytest.raises(ValueError, match=rf"need another name for purifier\.gradients\.{name}"):
        check_targets(config)
