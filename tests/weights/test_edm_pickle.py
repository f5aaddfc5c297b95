"""EDM's pickles: genuine layouts are read, and nothing in a file is ever executed."""

import collections
import functools
import io
import os
import pickle
import pickletools
import random
import struct
import subprocess
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dp.nets.edm_unet import DhariwalUNet, SongUNet
from dp.weights.checkpoints import load, read
from dp.weights.edm_pickle import EDMPickle
from tests.helpers import formats
from tests.helpers.formats import Persistent, _reconstruct_persistent_obj, dumps, edm_pickle, torch_file

TOUCHED = Path(tempfile.gettempdir()) / f"dp-executed-{os.getpid()}"
TINY = {"img_resolution": 8, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    return SongUNet(**TINY | changes)


def partial(**changes):
    return functools.partial(SongUNet, **TINY | changes)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DP_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("wrapper", ["EDMPrecond", "VPPrecond", "VEPrecond"])
def test_an_edm_pickle_is_read(cache, wrapper):
    net = tiny()
    (cache / "net.pkl").write_bytes(edm_pickle(net, TINY, wrapper))
    found = read(cache / "net.pkl")
    assert isinstance(found, EDMPickle)
    assert (found.wrapper, found.net) == (wrapper, "SongUNet")
    assert found.settings == TINY | {"in_channels": 3, "out_channels": 3}
    assert found.constants["sigma_data"] == 0.5
    assert set(found.state) == set(net.state_dict())
    loaded = load(partial(), "net.pkl", wrapper=wrapper)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in loaded.state_dict().items())


@pytest.mark.parametrize("gone", ["without it", "empty", "null"])
def test_a_pickle_that_does_not_record_its_settings_needs_record_none(cache, gone):
    net = tiny()
    inner = formats.persistent(net)  # records no settings
    if gone != "empty":
        del inner._init_kwargs
    if gone == "null":
        inner._init_kwargs = None
    outer = Persistent(nn.Module(), "EDMPrecond", img_channels=3)
    outer._modules["model"], outer.sigma_data = inner, 0.5
    (cache / "net.pkl").write_bytes(dumps({"ema": outer}))
    with pytest.raises(
        ValueError, match=r"need net\.pkl with the settings of its network .* got none: add `record: none`"
    ):
        load(partial(), "net.pkl", wrapper="EDMPrecond")
    loaded = load(partial(), "net.pkl", wrapper="EDMPrecond", record="none")
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in loaded.state_dict().items())
    with pytest.raises(ValueError, match="the preconditioner VPPrecond, got EDMPrecond"):
        load(partial(), "net.pkl", wrapper="VPPrecond", record="none")
    with pytest.raises(ValueError, match="need record: none, or no such key, got record='trust'"):
        load(partial(), "net.pkl", wrapper="EDMPrecond", record="trust")


def test_record_none_checks_what_is_recorded(cache):
    (cache / "net.pkl").write_bytes(edm_pickle(tiny(), TINY))
    with pytest.raises(ValueError, match="attn_resolutions"):
        load(partial(attn_resolutions=[8]), "net.pkl", wrapper="EDMPrecond", record="none")


def test_the_source_inside_is_not_executed(cache):
    """The fixture's source ends the process."""
    (cache / "net.pkl").write_bytes(edm_pickle(tiny(), TINY))
    assert b"raise SystemExit" in (cache / "net.pkl").read_bytes()
    assert isinstance(read(cache / "net.pkl"), EDMPickle)


@pytest.mark.parametrize(
    ("build", "wrapper", "said"),
    [
        (partial(), "VPPrecond", "preconditioner VPPrecond, got EDMPrecond"),
        (partial(), None, "preconditioner None, got EDMPrecond"),
        (partial(num_blocks=2), "EDMPrecond", "made with num_blocks=2, got 1"),
        (partial(attn_resolutions=[]), "EDMPrecond", r"attn_resolutions=\[\], got \[4\]"),
        (tiny(), "EDMPrecond", "_partial_"),
    ],
)
def test_a_pickle_made_otherwise_than_the_yaml_says(cache, build, wrapper, said):
    (cache / "net.pkl").write_bytes(edm_pickle(tiny(), TINY))
    with pytest.raises(ValueError, match=said):
        load(build, "net.pkl", wrapper=wrapper)


def test_a_setting_that_is_not_in_the_file_is_the_public_default(cache):
    settings = {k: v for k, v in TINY.items() if k != "attn_resolutions"} | {"img_resolution": 16}
    torch.manual_seed(0)
    net = SongUNet(**settings)
    (cache / "net.pkl").write_bytes(edm_pickle(net, settings))
    build = functools.partial(SongUNet, **settings, attn_resolutions=[16])
    loaded = load(build, "net.pkl", wrapper="EDMPrecond").state_dict()
    assert loaded.keys() == net.state_dict().keys()
    assert all(torch.equal(v, loaded[k]) for k, v in net.state_dict().items())


def test_another_class_of_network(cache):
    settings = {k: v for k, v in TINY.items() if k != "attn_resolutions"} | {"attn_resolutions": []}
    (cache / "net.pkl").write_bytes(edm_pickle(DhariwalUNet(**settings), settings))
    with pytest.raises(ValueError, match="made as SongUNet, got DhariwalUNet"):
        load(functools.partial(SongUNet, **settings), "net.pkl", wrapper="EDMPrecond")


@pytest.mark.parametrize(
    ("value", "said"), [(0.7, "0.7"), ("0.7", "0.7"), ([0.7], "no number"), (np.float64(0.7), "0.7")]
)
def test_other_constants_of_the_preconditioner(cache, value, said):
    (cache / "net.pkl").write_bytes(edm_pickle(tiny(), TINY, sigma_data=value))
    with pytest.raises(ValueError, match=rf"sigma_data=0.5 .* got {said}"):
        load(partial(), "net.pkl", wrapper="EDMPrecond")


def test_numpy_numbers_of_other_kinds_are_read(cache):
    (cache / "net.pkl").write_bytes(edm_pickle(tiny(), TINY, sigma_data=np.float64(0.5), flag=np.bool_(True)))
    assert read(cache / "net.pkl").constants["sigma_data"] == 0.5
    loaded = load(partial(), "net.pkl", wrapper="EDMPrecond").state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in tiny().state_dict().items())


class Call:
    """Pickles into a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def named(module: str, name: str, argument: bytes = b"X\x01\x00\x00\x00a") -> bytes:
    """A protocol-2 pickle that calls module.name with one argument."""
    return b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n" + argument + b"\x85R."


def persistent(state) -> Call:
    meta = {"type": "class", "version": 6, "module_src": "", "class_name": "EDMPrecond", "state": state}
    return Call(_reconstruct_persistent_obj, meta)


def nested_storage(touched) -> Call:
    """A storage whose bytes, read by torch's own function, would execute code."""
    inner = pickle.dumps(Call(os.system, f"touch {touched}"))
    return Call(torch.storage._load_from_bytes, inner)  # pyright: ignore[reportAttributeAccessIssue]


def tensor(storage, size, stride, offset=0) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def twins(depth: int):
    """A module that names one child twice, and so on down: 2^depth paths in a small file."""
    module = persistent({"_modules": {}, "_parameters": {}})
    for _ in range(depth):
        module = persistent({"_modules": {"a": module, "b": module}})
    return module


def doubled(depth: int) -> list:
    """A list that is short to write and endless to print."""
    found: list = ["x"]
    for _ in range(depth):
        found = [found, found]
    return found


def key_bomb() -> bytes:
    """A tuple that holds the one before twice, forty times over, as a dictionary's key."""
    nested = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(40))
    return b"\x80\x02K\x01\x85q\x00" + nested + b"}h\x28K\x01s."


class Hollow:
    """A storage of four numbers whose file lists none of them: torch would hand out whatever lay in memory."""

    def __reduce__(self):
        buffer = io.BytesIO()
        torch.save(torch.ones(4).storage(), buffer, _use_new_zipfile_serialization=False)
        return torch.storage._load_from_bytes, (unlisted(buffer.getvalue()),)  # pyright: ignore[reportAttributeAccessIssue]


def unlisted(raw: bytes) -> bytes:
    """An old torch file with an empty list of storages behind its content."""
    file = io.BytesIO(raw)
    for _ in range(4):
        for _ in pickletools.genops(file):
            pass
    return raw[: file.tell()] + b"\x80\x02]."


@functools.cache
def hostile(touched=TOUCHED) -> dict[str, bytes]:
    """Files that would execute code, fill the memory or never end, by name."""
    real = edm_pickle(tiny(), TINY)
    touch = f"touch {touched}"
    number = torch.zeros(4).storage()  # typed, as EDM's own are
    with_net = lambda net: dumps({"ema": persistent({"_modules": {"model": net}})})  # noqa: E731
    return {
        "os.system": pickle.dumps(Call(os.system, touch)),
        "builtins.eval": pickle.dumps(Call(eval, f"__import__('os').system('{touch}')")),
        "builtins.exec": pickle.dumps(Call(exec, f"import os; os.system('{touch}')")),
        "subprocess": pickle.dumps(Call(subprocess.Popen, ["touch", str(touched)])),
        "a global deep inside": dumps({"ema": persistent({"_modules": {"model": Call(os.system, touch)}})}),
        "beside a genuine network": real[:-1] + pickle.dumps(Call(os.system, touch))[2:-1] + b"0.",
        "getattr": named("builtins", "getattr"),
        "a dotted name below an allowed one": b"\x80\x04\x8c\x0bcollections\x8c\x13OrderedDict.fromkeys\x93)R.",
        "through an allowed class": with_net(Call(collections.OrderedDict, Call(os.system, touch))),
        "a nested storage": with_net(persistent({"_parameters": {"w": tensor(nested_storage(touched), (1,), (1,))}})),
        "torch.load": named("torch.serialization", "load"),
        "the real tensor class": named("torch", "Tensor"),
        "numpy's own loader": named("numpy", "load"),
        "runpy": named("runpy", "run_path"),
        "an old opcode": b"(S'touch'\nios\nsystem\n.",
        "an extension": b"\x80\x02\x82\x01.",
        "a persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "truncated": real[: len(real) // 2],
        "truncated by a byte": real[:-1],
        "bytes behind its end": real + b"\x00",
        "billions of memory cells": b"\x80\x02]r" + struct.pack("<I", 2**31 - 1) + b".",
        "a declared terabyte": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
        "a tensor wider than its storage": with_net(persistent({"_parameters": {"w": tensor(number, (9,), (1,))}})),
        "strides of zero": with_net(persistent({"_parameters": {"w": tensor(number, (10**6, 10**6), (0, 0))}})),
        "one storage named often": with_net(
            persistent({"_parameters": {str(i): tensor(number, (4,), (1,)) for i in range(2000)}})
        ),
        "modules nested without end": with_net(twins(45)),
        "two to the forty modules": with_net(twins(38)),
        "no network": dumps({"ema": 1}),
        "no ema": dumps({"model": 1}),
        "another version": dumps({"ema": Call(_reconstruct_persistent_obj, {"type": "class", "version": 7})}),
        "a module that is a tensor": with_net(tensor(number, (4,), (1,))),
        "an allowed class made to do more": with_net(Call(np.dtype, "O")),
        "a key that is endless to hash": key_bomb(),
        "a key as deep as the stack": b"\x80\x04}K\x01" + b"\x85" * 2_000_000 + b"K\x01s.",
        "settings that double and double": with_net(persistent({"_init_kwargs": {"a": doubled(40)}})),
        "a storage whose numbers are missing": with_net(
            persistent({"_parameters": {"w": tensor(Hollow(), (4,), (1,))}})
        ),
    }


@pytest.mark.parametrize("name", hostile())
def test_hostile_files_are_refused_and_nothing_is_executed(cache, name):
    path = cache / "net.pkl"
    path.write_bytes(hostile()[name])
    with pytest.raises(ValueError, match=r"net\.pkl") as error:
        load(partial(), "net.pkl", wrapper="EDMPrecond")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert not TOUCHED.exists()


def test_the_hostile_files_do_harm_where_nobody_looks():
    """The files above are armed: the ordinary unpickler runs them."""
    for name in ("os.system", "builtins.eval", "builtins.exec", "subprocess"):
        process = pickle.loads(hostile()[name])
        if isinstance(process, subprocess.Popen):
            process.wait()
        assert TOUCHED.exists(), name
        TOUCHED.unlink()


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(f"archive/{name.replace('_', '.', 1)}", data)
    return buffer.getvalue()


def packed() -> bytes:
    """A torch file of 40 MB of zeros in a few kilobytes."""
    whole = io.BytesIO(torch_file({"w": torch.zeros(10_000_000)}))
    buffer = io.BytesIO()
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return buffer.getvalue()


def swelling() -> bytes:
    """Bytes doubled again and again by a codec that torch's own reader lets through."""
    text = b"X\x04\x00\x00\x00abcdX\x06\x00\x00\x00latin1\x86R"
    for _ in range(40):
        text = b"c_codecs\nencode\n" + text + b"X\x03\x00\x00\x00hex\x86R"
    return archive(data_pkl=b"\x80\x02c_codecs\nencode\n" + text + b".")


def spelled() -> bytes:
    """The codec's name comes out of a numpy string, where no scan of the file's text sees it."""
    kind = b"cnumpy\ndtype\nX\x02\x00\x00\x00U3\x85R"
    name = b"cnumpy.core.multiarray\nscalar\n" + kind + b"X\x0c\x00\x00\x00h\x00\x00\x00e\x00\x00\x00x\x00\x00\x00\x86R"
    return archive(data_pkl=b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00a" + name + b"\x86R.")


class Evil(dict):
    def __reduce__(self):
        return os.system, ("exit 3",)


@functools.cache
def hostile_torch_files(touched=TOUCHED) -> dict[str, bytes]:
    real = torch_file({"w": torch.ones(3)})
    wide = torch.zeros(1).expand(10**6, 10**6)
    return {
        "os.system": torch_file(Call(os.system, f"touch {touched}")),
        "os.system, old format": torch_file(Call(os.system, f"touch {touched}"), old=True),
        "beside weights": torch_file({"w": torch.ones(3), "args": Evil()}),
        "a module": torch_file(torch.nn.Linear(2, 2)),
        "truncated": real[: len(real) // 2],
        "truncated, old format": torch_file({"w": torch.ones(300)}, old=True)[:-200],
        "packed": packed(),
        "strides of zero": torch_file({"w": wide}),
        "one tensor a thousand times": torch_file(
            {str(i): torch.zeros(1000).expand(1000) for i in [0]} | named_often()
        ),
        "a codec that swells": swelling(),
        "a key that is endless to hash": archive(data_pkl=key_bomb()),
        "two names that differ in case": archive(DATA_PKL=b"\x80\x02cbuiltins\nbytearray\n.", data_pkl=b"\x80\x02}."),
        "a directory that is moved": b"PK\x03\x04" + torch_file({"w": torch.ones(3)}),
        "bytes behind the archive": torch_file({"w": torch.ones(3)}) + b"more",
        "a codec named by a number": spelled(),
        "storages that are not listed": unlisted(
            torch_file({"weight": torch.ones(1, 3), "bias": torch.ones(1)}, old=True)
        ),
        "a list that holds itself": archive(data_pkl=b"\x80\x02]q\x00(" + b"h\x00" * 5000 + b"e."),
        "a dictionary with methods of its own": archive(
            data_pkl=b"\x80\x02ccollections\nOrderedDict\n)Rq\x01}X\x06\x00\x00\x00valuesh\x01sb."
        ),
        "a name that is no text": torch_file({"w": torch.ones(3)}).replace(
            b"archive/data.pkl", b"archive/\xff\xfeta.pkl"
        ),
        "no pickle": archive(something=b"x"),
        "two pickles": archive(data_pkl=b"\x80\x02N.", other_data_pkl=b""),
        "a web page": b"<!DOCTYPE html><html>quota exceeded</html>",
        "nothing": b"",
        "noise": bytes(range(255, 0, -1)) * 9,
    }


def named_often() -> dict:
    one = torch.zeros(1000)
    return {f"n{i}": one for i in range(1000)}


@pytest.mark.parametrize("name", hostile_torch_files())
def test_hostile_torch_files_are_refused_and_nothing_is_executed(cache, name):
    (cache / "net.pt").write_bytes(hostile_torch_files()[name])
    with pytest.raises(ValueError, match=r"net\.pt") as error:
        load(torch.nn.Linear(3, 1), "net.pt")
    assert "\n" not in str(error.value)
    assert not TOUCHED.exists()


@pytest.mark.parametrize("name", ["zip", "old", "edm", "safetensors"])
def test_damaged_files_are_one_line(cache, name):
    """Bits flipped and ends cut off: read, or refused as a user's error, never anything else."""
    from safetensors.torch import save

    weights, chance, said = {"weight": torch.ones(1, 3), "bias": torch.ones(1)}, random.Random(0), []
    real = {
        "zip": torch_file(weights),
        "old": torch_file(weights, old=True),
        "edm": edm_pickle(tiny(), TINY)[:],
        "safetensors": save(weights),
    }[name]
    for _ in range(60 if name == "edm" else 300):
        data = bytearray(real)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (cache / "net.bin").write_bytes(data[: chance.randrange(len(data))] if chance.random() < 0.2 else data)
        try:
            read(cache / "net.bin")
        except ValueError as error:
            said.append(str(error))
    assert said
    assert not any("\n" in line for line in said)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a tensor wider than its storage", "a tensor reaches beyond its storage"),
        ("strides of zero", "a tensor is not dense"),
        ("a module that is a tensor", "wraps no `model`"),
        ("another version", "other fields|another version"),
        ("two to the forty modules", "nested in a way that no network is"),
        ("modules nested without end", "nested in a way that no network is"),
        ("a nested storage", "torn or not a pickle|it names"),
        ("a storage whose numbers are missing", "not what its bytes are|cannot be read"),
        ("settings that double and double", "plain settings"),
        ("a key that is endless to hash", "tuples without end"),
        ("a key as deep as the stack", "tuples without end"),
        ("billions of memory cells", "memory cells"),
        ("truncated", "torn"),
        ("bytes behind its end", "behind its end"),
    ],
)
def test_hostile_files_are_refused_for_what_they_are(cache, name, why):
    (cache / "net.pkl").write_bytes(hostile()[name])
    with pytest.raises(ValueError, match=why):
        read(cache / "net.pkl")
