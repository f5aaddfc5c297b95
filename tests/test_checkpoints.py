"""Finding, checking and reading weights."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dp.checkpoints import ASSETS, cache_folder, load, locate

FILE, URL = "tiny.safetensors", "https://example.org/weights/tiny.safetensors"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DP_CACHE", str(tmp_path))
    return tmp_path


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def written(folder, state=None):
    save_file(net().state_dict() if state is None else state, folder / FILE)
    return hashlib.sha256((folder / FILE).read_bytes()).hexdigest()


def test_load(cache):
    digest = written(cache)
    for sha256 in (digest, None):
        other = net(seed=1)
        assert not torch.equal(other[0].weight, net()[0].weight)
        assert load(other, FILE, sha256=sha256) is other
        assert all(
            torch.equal(a, b) for a, b in zip(other.state_dict().values(), net().state_dict().values(), strict=True)
        )


@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "1.num_batches_tracked"])
def test_a_missing_tensor(cache, name):
    written(cache, {k: v for k, v in net().state_dict().items() if k != name})
    with pytest.raises(ValueError, match=f"got 1 that differ, e.g. {name}"):
        load(net(), FILE)


def test_a_tensor_left_over(cache):
    written(cache, net().state_dict() | {"2.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"got 1 that differ, e.g. 2\.weight"):
        load(net(), FILE)


def test_nothing_is_loaded_from_a_file_that_does_not_fit(cache):
    written(cache, net().state_dict() | {"2.weight": torch.zeros(2)})
    other = net(seed=1)
    with pytest.raises(ValueError, match="differ"):
        load(other, FILE)
    assert torch.equal(other[0].weight, net(seed=1)[0].weight)


def test_wrong_hash(cache):
    digest = written(cache)
    wrong = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ValueError, match=f"SHA-256 {wrong[:12]}.*got {digest[:12]}"):
        load(net(), FILE, sha256=wrong)


@pytest.mark.parametrize("position", [20, -1])
def test_one_flipped_bit_changes_the_hash(cache, position):
    digest = written(cache)
    data = bytearray((cache / FILE).read_bytes())
    data[position] ^= 1
    (cache / FILE).write_bytes(data)
    with pytest.raises(ValueError, match="SHA-256"):
        load(net(), FILE, sha256=digest)


@pytest.mark.parametrize("kept", [0, 4, 8, 50, 0.5, -1])
def test_a_torn_file(cache, kept):
    """An interrupted download: nothing, a piece of the header, or all but the end; with and without a known hash."""
    digest = written(cache)
    data = (cache / FILE).read_bytes()
    (cache / FILE).write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"need a whole safetensors file, got .*tiny\.safetensors") as error:
        load(net(), FILE)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="SHA-256"):
        load(net(), FILE, sha256=digest)


class Payload:
    """Touches a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", [FILE, "tiny.pt", "tiny.pkl"])
def test_a_pickle_is_never_executed(cache, name):
    (cache / name).write_bytes(pickle.dumps(Payload(cache / "touched")))
    with pytest.raises(ValueError, match="safetensors"):
        load(net(), name)
    assert not (cache / "touched").exists()
    pickle.loads((cache / name).read_bytes())
    assert (cache / "touched").exists()


def test_a_missing_file_says_what_to_get_and_where_to_put_it(cache):
    with pytest.raises(FileNotFoundError) as error:
        load(net(), FILE, url=URL, megabytes=141.5)
    text = str(error.value)
    assert "\n" not in text
    for part in (FILE, URL, "141.5 MB", str(cache), "DP_CACHE"):
        assert part in text


def test_a_missing_file_of_unknown_origin(cache):
    with pytest.raises(FileNotFoundError, match=r"need tiny\.safetensors; put it into"):
        locate(FILE)


def test_a_folder_is_no_file(cache):
    (cache / FILE).mkdir()
    with pytest.raises(FileNotFoundError):
        locate(FILE)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("DP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "dp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "dp"


def test_a_file_is_found_in_the_cache(cache):
    written(cache)
    assert locate(FILE) == cache / FILE


@pytest.mark.parametrize("file", ["digits_classifier.safetensors", "digits_denoiser.safetensors"])
def test_embedded_weights_need_no_cache(cache, file):
    assert locate(file) == ASSETS / file


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(cache, dtype):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in net().state_dict().items()}
    written(cache, state)
    found = load(net(seed=1), FILE).state_dict()
    for name, value in state.items():
        assert found[name].dtype == (torch.float32 if value.is_floating_point() else torch.int64)
        assert torch.equal(found[name], value.to(found[name].dtype))


def test_a_wrong_shape_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("DP_CACHE", str(tmp_path))
    save_file({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match=r"^need weight of another shape for Linear, got s\.safetensors"):
        load(nn.Linear(3, 2), "s.safetensors")
