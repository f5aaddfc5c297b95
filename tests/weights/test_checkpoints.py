"""Finding, checking and reading weights."""

import argparse
import functools
import hashlib
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dp.files.cache import ASSETS, Asset, cache_folder, locate
from dp.nets.ncsnpp import NCSNpp
from dp.nets.wrn import WideResNet
from dp.weights.checkpoints import fit, load, read
from tests.helpers.formats import from_functional, score_sde, torch_file

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
    with pytest.raises(ValueError, match=r"got .*tiny\.safetensors") as error:
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
    with pytest.raises(ValueError, match="nothing was executed"):
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
        locate(Asset(FILE))


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
    assert locate(Asset(FILE)) == cache / FILE


@pytest.mark.parametrize("name", ["digits_classifier", "digits_denoiser", "digits_conditional", "digits_at"])
def test_embedded_weights_need_no_cache(cache, name):
    assert locate(Asset(f"{name}.safetensors")) == ASSETS / f"{name}.safetensors"


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
    with pytest.raises(
        ValueError, match=r"^need weight of another shape for Linear in s\.safetensors: \(2, 3\), got \(2, 2\)"
    ):
        load(nn.Linear(3, 2), "s.safetensors")


def linear():
    return nn.Linear(3, 2)


WEIGHTS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("content", "entry"),
    [
        (WEIGHTS, None),
        ({f"module.{k}": v for k, v in WEIGHTS.items()}, None),
        ({"state_dict": WEIGHTS, "epoch": 200, "best": 94.78}, "state_dict"),
        ({"model_state_dict": {f"module.0.{k}": v for k, v in WEIGHTS.items()}}, "model_state_dict"),
        ([{f"module.{k}": v for k, v in WEIGHTS.items()}, {"lr": 0.1}, 3, 1000], 0),
        ({"state_dict": WEIGHTS, "lr": np.float64(0.1)}, "state_dict"),
        ({"state_dict": WEIGHTS, "args": argparse.Namespace(lr=0.1)}, "state_dict"),
    ],
)
def test_torch_files_of_the_public_layouts(cache, content, entry, old):
    (cache / "net.pt").write_bytes(torch_file(content, old))
    found = load(linear, "net.pt", entry=entry).state_dict()
    assert all(torch.equal(found[k], v) for k, v in WEIGHTS.items())


@pytest.mark.parametrize(
    ("content", "entry", "said"),
    [
        ({"state_dict": WEIGHTS, "epoch": 1}, None, "got epoch, state_dict beside them"),
        ({"state_dict": WEIGHTS}, "model", "need the entry 'model' in net.pt, got state_dict"),
        ([WEIGHTS], 1, "need the entry 1 in net.pt, got 0"),
        (torch.zeros(3), None, "got Tensor"),
        ({"weight": torch.zeros(2, 3, dtype=torch.long), "bias": torch.zeros(2)}, None, "dense torch.float32"),
    ],
)
def test_torch_files_of_other_layouts(cache, content, entry, said):
    (cache / "net.pt").write_bytes(torch_file(content))
    with pytest.raises(ValueError, match=re.escape(said)):
        load(linear, "net.pt", entry=entry)


def score_net(seed=0):
    torch.manual_seed(seed)
    return NCSNpp(image_size=8, nf=8, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[4], embedding_type="fourier")


def test_a_score_sde_average_is_named_after_its_model(cache):
    net, other = score_net(), score_net(seed=1)
    average = {k: v.detach() for k, v in other.named_parameters()}
    (cache / "checkpoint_8.pth").write_bytes(torch_file(score_sde(net, average)))
    found = load(functools.partial(score_net, seed=2), "checkpoint_8.pth", entry="ema").state_dict()
    frozen = {"sigmas", "all_modules.0.W"}  # not averaged: the model's own
    for name, value in found.items():
        assert torch.equal(value, (net if name in frozen else other).state_dict()[name]), name
    assert found["sigmas"].dtype == torch.float64


@pytest.mark.parametrize("change", ["short", "long", "swapped", "no model", "another order"])
def test_a_score_sde_average_that_does_not_fit(cache, change):
    """The original's zip would stop at the shorter list, and mix up what follows."""
    content = score_sde(score_net(), {k: v.detach() for k, v in score_net(1).named_parameters()})
    average = content["ema"]["shadow_params"]
    if change == "short":
        average.pop()
    elif change == "long":
        average.append(torch.zeros(1))
    elif change == "swapped":
        average[0], average[1] = average[1], average[0]
    elif change == "another order":  # equal shapes would be paired wrongly
        content["model"] = dict(reversed(content["model"].items()))
    else:
        del content["model"]
    (cache / "checkpoint_8.pth").write_bytes(torch_file(content))
    with pytest.raises(ValueError, match=r"averages of the shapes|the `model` that names it|in the order of NCSNpp"):
        load(score_net, "checkpoint_8.pth", entry="ema")


def test_a_functional_wide_resnet_under_our_names(cache):
    """Zagoruyko's flat parameters: bare convolutions, no counters in the batch norms."""
    wrn = WideResNet(depth=10, widen=2)
    flat = {}
    for name, value in wrn.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        name = re.sub(r"block(\d)\.layer\.(\d)", lambda m: f"group{int(m[1]) - 1}.block{m[2]}", name)
        inside = name.startswith("group")
        name = re.sub(r"(bn|conv)(\d)", lambda m: f"{m[1]}{int(m[2]) - 1}", name)
        name = name if inside else name.replace("bn0", "bn")
        name = name.replace("convShortcut", "convdim")
        flat[name.removesuffix(".weight") if "conv" in name else name] = value.clone().requires_grad_(
            value.is_floating_point()
        )
    (cache / "wrn.pt7").write_bytes(torch_file({"params": flat, "epoch": 3, "optimizer": {}}))
    found = load(functools.partial(WideResNet, depth=10, widen=2), "wrn.pt7", entry="params", rename=from_functional)
    assert all(torch.equal(v, wrn.state_dict()[k]) for k, v in found.state_dict().items())


def test_nothing_is_copied_from_a_mapped_file(cache):
    """The weights of a torch archive are the file's own pages: no second copy."""
    (cache / "net.pt").write_bytes(torch_file({k: v.clone() for k, v in WEIGHTS.items()}))
    found, again = (load(linear, "net.pt") for _ in range(2))
    assert found.weight.untyped_storage().data_ptr() != again.weight.untyped_storage().data_ptr()
    with torch.no_grad():
        found.weight.zero_()  # private pages: the file keeps its values
    assert torch.equal(load(linear, "net.pt").weight, WEIGHTS["weight"])


def test_float8_is_widened(cache):
    state = {k: v.to(torch.float8_e4m3fn) for k, v in WEIGHTS.items()}
    save_file(state, cache / "s.safetensors")
    assert torch.equal(load(linear, "s.safetensors").weight, WEIGHTS["weight"])


def test_a_buffer_that_no_file_holds(cache):
    class Odd(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.register_buffer("hidden", torch.zeros(1), persistent=False)

    save_file(WEIGHTS, cache / "s.safetensors")
    load(Odd(), "s.safetensors")
    with pytest.raises(AssertionError, match="leave `_partial_` out"):
        load(Odd, "s.safetensors")


def test_fit_keeps_the_precision_of_the_network():
    net = fit(nn.Linear(3, 2).double(), WEIGHTS, "weights")
    assert net.weight.dtype == torch.float64


def test_a_hash_that_is_not_known_is_noted_on_first_use(cache):
    written(cache)
    load(net(), FILE)
    written(cache, {k: v + 1 for k, v in net().state_dict().items()})
    with pytest.raises(ValueError, match=r"as noted in hashes\.json on first use"):
        load(net(), FILE)


def test_read_names_the_container(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="a web page"):
        read(tmp_path / "x.pt")


def test_a_damaged_tensor_in_an_archive(cache):
    """One bit of a number; torch itself does not check the archive's checksums."""
    data = bytearray(torch_file(WEIGHTS))
    data[data.index(torch.arange(6.0).numpy().tobytes()) + 7] ^= 64
    (cache / "net.pt").write_bytes(data)
    torch.load(cache / "net.pt", weights_only=True)
    with pytest.raises(ValueError, match=r"data/\d+ in it is damaged"):
        load(linear, "net.pt")


def test_a_safetensors_file_whose_length_spells_pk(cache):
    """The first eight bytes are the header's length, which may be any number, PK's too."""
    save_file(WEIGHTS, cache / "s.safetensors")
    data = (cache / "s.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, wanted = data[8 : 8 + length], int.from_bytes(b"PK", "little")  # 19280, a multiple of 8
    padded = header + b" " * (wanted - length)
    (cache / "s.safetensors").write_bytes(wanted.to_bytes(8, "little") + padded + data[8 + length :])
    assert torch.equal(load(linear, "s.safetensors").weight, WEIGHTS["weight"])
