"""What stands in no key is compared when a run goes on: code, plug-ins and weights without a hash."""

import sys

import pytest

from dp.output import record
from dp.runs.sources import sources_hash, training_hash

MODULE = "mine_of_the_sources"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A configuration with a plug-in of one module and with weights whose content no key states."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DP_CACHE", str(tmp_path))
    (tmp_path / f"{MODULE}.py").write_text("noise = 1")
    (tmp_path / "weights.safetensors").write_bytes(b"zeros")
    yield {"plugins": {"modules": ["dp", MODULE]}, "classifier": {"net": {"file": "weights.safetensors"}}}
    sys.modules.pop(MODULE, None)


def test_an_edited_plug_in_is_another_source(config, tmp_path):
    before = sources_hash(config)
    assert sources_hash(config) == before
    (tmp_path / f"{MODULE}.py").write_text("noise = 9")
    assert sources_hash(config) != before


def test_a_package_counts_with_all_its_files(config, tmp_path):
    (tmp_path / f"{MODULE}.py").unlink()
    (tmp_path / MODULE).mkdir()
    for name in ("__init__", "helper"):
        (tmp_path / MODULE / f"{name}.py").write_text("x = 1")
    before = sources_hash(config)
    (tmp_path / MODULE / "helper.py").write_text("x = 2")
    assert sources_hash(config) != before


def test_replaced_weights_are_another_source_if_no_hash_states_them(config, tmp_path):
    before = sources_hash(config)
    stated = {**config, "classifier": {"net": {"file": "weights.safetensors", "sha256": "0" * 64}}}
    same = sources_hash(stated)
    (tmp_path / "weights.safetensors").write_bytes(b"ones")
    assert sources_hash(config) != before
    assert sources_hash(stated) == same


def test_dps_own_code_counts(config, monkeypatch):
    before = sources_hash(config)
    monkeypatch.setattr(record, "code_hash", lambda: "another")
    assert sources_hash(config) != before


def test_a_training_is_of_its_code_and_of_what_it_reads(config, tmp_path, monkeypatch):
    """The weights that it writes do not count, nor do other embedded ones."""
    recipe = {"dataset": {}, "training": {"start": {"file": "weights.safetensors"}}, "others": {}, **config}
    recipe["classifier"] = {"net": {"file": "written.safetensors"}}
    before = training_hash(recipe)
    (tmp_path / "written.safetensors").write_bytes(b"new")
    assert training_hash(recipe) == before
    (tmp_path / "weights.safetensors").write_bytes(b"ones")
    begins_elsewhere = training_hash(recipe)
    (tmp_path / f"{MODULE}.py").write_text("noise = 9")
    assert len({before, begins_elsewhere, training_hash(recipe)}) == 3
    monkeypatch.setattr(record, "ROOT", tmp_path)
    (tmp_path / "dp" / "commands").mkdir(parents=True)
    (tmp_path / "dp" / "loss.py").write_text("x = 1")
    first = training_hash(recipe)
    (tmp_path / "dp" / "commands" / "train.py").write_text("x = 1")
    (tmp_path / "dp" / "embedded.safetensors").write_bytes(b"new")
    assert training_hash(recipe) == first
    (tmp_path / "dp" / "loss.py").write_text("x = 2")
    assert training_hash(recipe) != first
