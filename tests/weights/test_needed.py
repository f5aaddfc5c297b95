"""Which files a configuration names."""

import subprocess
import sys
from pathlib import Path

from dp.files.cache import Asset
from dp.weights import needed

ROOT = Path(__file__).parents[2]


def test_what_a_configuration_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("DP_CACHE", str(tmp_path))
    monkeypatch.setitem(
        needed.ZOO, "dp.weights.zoo.timm", lambda model, pretrained=True: Asset(model) if pretrained else None
    )
    (tmp_path / "there").write_bytes(b"")
    config = {
        "dataset": {"name": "d", "loader": {"file": "set", "url": "u", "unpack": True, "images": 3}},
        "classifier": {"net": {"file": "digits_classifier.safetensors", "sha256": None, "megabytes": 1}},
        "more": [
            {"file": "there"},
            {"file": "two", "url": ["http://a", "http://b"]},
            {"file": "two", "url": ["http://a", "http://b"]},
            {"file": "set", "url": "u", "unpack": True},
            {"file": None},
            {"file": {"file": "in"}},
            {"per_dataset": {"another": {"file": "of another dataset"}}},
        ],
        "zoo": {"_target_": "dp.weights.zoo.timm", "_partial_": True, "model": "vit"},
        "plain": {"_target_": "dp.weights.zoo.timm", "model": "bare", "pretrained": False},
    }
    embedded = Asset("digits_classifier.safetensors", megabytes=1)
    found = [Asset("set", "u", unpack=True), embedded, Asset("there")]
    found += [Asset("two", ("http://a", "http://b")), Asset("in"), Asset("vit")]
    assert needed.needed(config) == found
    assert needed.missing(config) == [found[0], *found[3:]]


def test_a_library_is_imported_only_for_its_own_models():
    code = """
import sys
from dp.weights.needed import needed
needed({"file": "a"})
assert not {"torch", "timm"} & set(sys.modules)
assert needed({"_target_": "dp.weights.zoo.timm", "model": "resnet18.a1_in1k"})[0].file.startswith("timm/resnet18")
assert {"torch", "timm"} <= set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_table_of_values_by_dataset_names_no_files_of_the_run():
    table = {"digits": {"file": "small.safetensors"}, "default": {"file": "large.safetensors", "url": "nowhere"}}
    node = {"net": {"per_dataset": table, "file": "small.safetensors", "url": None}}
    assert [asset.file for asset in needed.needed(node)] == ["small.safetensors"]
