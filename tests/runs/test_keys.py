"""A run's key follows what can change a row, and nothing else."""

import copy
import json

import pytest

from dp.output import record
from dp.runs import keys
from dp.runs.by_dataset import ROOT
from dp.runs.keys import run_key
from tests.helpers.compose import composed


@pytest.fixture(scope="module")
def base() -> dict:
    return composed()


def changed(config: dict, path: str, value) -> dict:
    """A copy of the configuration with one value set, nodes on the way made where they are missing."""
    config = copy.deepcopy(config)
    node, *rest = config, *path.split(".")
    for name in rest[:-1]:
        node = node.setdefault(name, {})
    node[rest[-1]] = value
    return config


@pytest.mark.parametrize(
    "override", ["device=cpu", "memory=recompute", "workers=3", "shard=1/2", "overwrite=true", "tracking=wandb"]
)
def test_what_changes_no_row_changes_no_key(base, override):
    assert run_key(composed(override)) == run_key(base)


@pytest.mark.parametrize(
    "override", ["dtype=bfloat16", "purifier.tau=0.6", "dataset.lanes=16", "protocol.seeds=[1]", "attack.eot=3"]
)
def test_what_changes_rows_changes_the_key(base, override):
    assert run_key(composed(override)) != run_key(base)
    assert run_key(base).startswith("digits-hetero-pgd_eot-linf-")


def test_a_moved_module_changes_no_key(base):
    for group in ("purifier", "attack", "threat_model", "denoiser", "classifier"):
        *_, file, name = base[group]["_target_"].split(".")
        assert run_key(changed(base, f"{group}._target_", f"dp.elsewhere.{file}.{name}")) == run_key(base)
        assert run_key(changed(base, f"{group}._target_", f"dp.elsewhere.{file}2.{name}")) != run_key(base)


def test_an_option_added_later_changes_the_key_only_where_it_differs(base, monkeypatch):
    monkeypatch.setitem(keys.NEUTRAL, "purifier.resampling", "single")
    assert run_key(changed(base, "purifier.resampling", "single")) == run_key(base)
    assert run_key(changed(base, "purifier.resampling", "multi")) != run_key(base)
    assert run_key(changed(base, "attack.resampling", "single")) != run_key(base)  # the path counts, not the name


def test_resampling_as_it_was_is_not_hashed(base):
    without = {k: v for k, v in base["purifier"].items() if k != "resampling"}
    assert run_key({**base, "purifier": without}) == run_key(base)
    assert run_key(composed("purifier.resampling=multi")) != run_key(base)


def test_a_new_dataset_in_a_table_changes_no_key(base):
    table = base["purifier"]["per_dataset"]
    assert run_key(changed(base, "purifier.per_dataset", {**table, "mars": {"t_l": 0.9}})) == run_key(base)


def test_labels_addresses_and_sizes_change_no_key(base):
    assert run_key(changed(base, "purifier.published", "another")) == run_key(base)
    assert run_key(changed(base, "denoiser.net.url", "https://example.org/weights")) == run_key(base)
    assert run_key(changed(base, "denoiser.net.megabytes", 12)) == run_key(base)
    assert run_key(changed(base, "denoiser.net.sha256", "0" * 64)) != run_key(base)


def test_an_option_added_later_counts_only_where_it_differs():
    """PGD's momentum, alone, in a wrapper and in a union: rows of before have no such key."""
    for attack, path in (("pgd_eot", "attack"), ("bpda_eot", "attack.attack"), ("union", "attack.attacks.pgd_eot")):
        config = composed(f"attack={attack}", f"{path}.momentum=0.0")
        assert run_key(changed(config, f"{path}.momentum", 0.5)) != run_key(config)
        node = config
        for part in path.split("."):
            node = node[part]
        before = {k: v for k, v in node.items() if k != "momentum"}
        assert run_key(changed(config, path, before)) == run_key(config)


@pytest.mark.parametrize(("option", "value"), [("variance", "large"), ("clip_x0", True), ("pixel_sigma", 0.25)])
def test_diffpures_later_options_count_only_where_they_differ(option, value):
    config = composed("purifier=diffpure")
    before = {k: v for k, v in config["purifier"].items() if k != option}
    assert run_key(changed(config, "purifier", before)) == run_key(config)
    assert run_key(changed(config, f"purifier.{option}", value)) != run_key(config)


@pytest.mark.parametrize(("attack", "path"), [("pgd_eot", "attack"), ("bpda_eot", "attack.attack")])
def test_a_null_control_that_moved_has_another_key(attack, path, monkeypatch):
    """PGD's null control moved only where it keeps the best of several points. Elsewhere the keys stay."""
    plain = composed(f"attack={attack}")
    others = [changed(plain, f"{path}.select", "best"), changed(plain, f"{path}.restarts", 3)]
    union = changed(
        composed("attack=union"), "attack.attacks.pgd_eot.restarts", 3
    )  # the union has a version of its own
    now = [run_key(config) for config in (plain, union, *others)]
    monkeypatch.setattr(keys, "NULL_MOVED", {})
    before = [run_key(config) for config in (plain, union, *others)]
    assert now[:2] == before[:2]
    assert {*now[2:]}.isdisjoint(before)


def test_gradient_variants_count_only_where_they_are_used(base):
    """The surrogate's steps are another run's matter, unless the attack goes through the surrogate."""
    other = changed(base, "purifier.gradients.surrogate.steps", 2)
    assert run_key(other) == run_key(base)
    through = composed("threat_model.grad=surrogate")
    assert run_key(changed(through, "purifier.gradients.surrogate.steps", 2)) != run_key(through)
    mask = composed("attack=through_mask_soft")
    assert run_key(changed(mask, "purifier.gradients.mask_soft.temperature", 0.1)) != run_key(mask)
    assert run_key(changed(mask, "purifier.gradients.surrogate.steps", 2)) == run_key(mask)


def test_a_new_version_changes_its_own_keys_alone(base):
    first = changed(base, "purifier.version", 1)
    assert run_key(first) == run_key(
        {**first, "purifier": {k: v for k, v in first["purifier"].items() if k != "version"}}
    )
    assert run_key(changed(base, "purifier.version", 2)) != run_key(first)
    assert run_key(changed(base, "protocol.version", 2)) != run_key(base)
    other = composed("purifier=diffpure")
    assert run_key(other) == run_key(composed("purifier=diffpure"))
    assert len({run_key(c) for c in (first, other, changed(base, "purifier.version", 2))}) == 3


def test_targets_outside_dp_are_hashed_whole(base):
    """A plug-in may have the names of a module and a function of dp."""
    short = ".".join(base["purifier"]["_target_"].split(".")[-2:])
    outside = [run_key(changed(base, "purifier._target_", name)) for name in (short, f"a.{short}", f"b.{short}")]
    assert len({run_key(base), *outside}) == 4


@pytest.mark.parametrize("name", ["url", "megabytes", "files", "full_size", "scaled_from"])
def test_an_argument_may_have_the_name_of_a_label(base, name):
    assert run_key(changed(base, f"purifier.{name}", 0.1)) != run_key(changed(base, f"purifier.{name}", 0.9))


def test_all_variants_count_for_an_attack_that_may_choose_its_gradient_itself(base):
    outside = changed(base, "attack._target_", "mine.Attack")
    assert run_key(changed(outside, "purifier.gradients.surrogate.steps", 2)) != run_key(outside)


def test_an_attacks_version_counts_beside_autoattacks_suite():
    rand = composed("attack=autoattack")
    assert (
        len({run_key(c) for c in (rand, changed(rand, "attack.version", 3), changed(rand, "attack.suite", "standard"))})
        == 3
    )


def test_measured_folders_bear_the_key_of_their_configuration():
    folders = sorted(path.parent for path in (ROOT / "results" / "measured").glob("*/summary.json"))
    assert len(folders) >= 72
    for folder in folders:
        summary = record.read_summary(folder)
        assert summary is not None
        assert run_key(summary["config"]) == folder.name


ONE_RUN = [
    (["purifier=diffpure"], "purifier.eta=1", "purifier.eta=1.0"),
    ([], "purifier.tau=1", "purifier.tau=1.0"),
    ([], "purifier.gradients.mask_soft.temperature=1", "purifier.gradients.mask_soft.temperature=1.0"),
    ([], "attack.momentum=1", "attack.momentum=1.0"),
    (["attack=strict"], "attack.attacks.pgd_eot.momentum=1", "attack.attacks.pgd_eot.momentum=1.0"),
    ([], "attack.step_size=1/64", "attack.step_size=0.015625"),
    ([], "threat_model.eps=32/255", "threat_model.eps=32./255"),
    ([], "threat_model.eps=32/255", "threat_model.eps='32 / 255.0'"),
    (["threat_model=l2"], "threat_model.eps=1", "threat_model.eps=1.0"),
    ([], "dataset.eps.linf=32/255", "dataset.eps.linf=32./255"),
]


@pytest.mark.parametrize(("options", "one", "other"), ONE_RUN)
def test_two_spellings_of_a_number_are_one_run(options, one, other):
    mask = ["attack=through_mask_soft"] if "mask_soft" in one else []
    assert run_key(composed(*options, *mask, one)) == run_key(composed(*options, *mask, other))
    assert run_key(composed(*options, *mask, one.partition("=")[0] + "=0.3")) != run_key(composed(*options, *mask, one))


def test_a_fraction_is_a_number_and_the_readme_has_the_key():
    assert composed("attack.step_size=1/255")["attack"]["step_size"] == 1 / 255
    assert (
        composed("attack=strict", "attack.attacks.pgd_eot.step_size=-1/4")["attack"]["attacks"]["pgd_eot"]["step_size"]
        == -0.25
    )
    assert composed("attack.step_size=1/0")["attack"]["step_size"] == "1/0"  # refused by its type
    assert composed("attack.iterations=8/2")["attack"]["iterations"] == "8/2"
    readme = (ROOT / "README.md").read_text()
    assert run_key(composed()) in readme
    assert run_key(composed("threat_model.eps=32./255")) in readme


def test_a_folder_of_another_format_is_refused_in_one_line(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"nfe": 8}))
    with pytest.raises(ValueError, match=r"need .*summary.json of format 2, got 1: move the folder away") as error:
        record.read_summary(tmp_path)
    assert "\n" not in str(error.value)
