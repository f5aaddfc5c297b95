"""Files in the formats of the public checkpoints and datasets, around networks of ours."""

import io
import pickle
import re
import struct
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

SOURCE = "raise SystemExit('the source inside a checkpoint was executed')\n"


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the tests only write with this")


class Persistent(nn.Module):
    """A module that is pickled as EDM's persistence writes it: a record of its class, its source and its state."""

    def __init__(self, module: nn.Module, kind: str, **init):
        super().__init__()
        self._parameters = dict(module._parameters)
        self._buffers = dict(module._buffers)
        for name, child in module._modules.items():
            self.add_module(name, child)
        self._kind, self._init_args, self._init_kwargs = kind, (), init
        self.skip_scale = np.sqrt(0.5)  # a numpy scalar, as the public files hold

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self._kind}
        return _reconstruct_persistent_obj, (meta | {"state": self.__dict__},)


def persistent(module: nn.Module, kind: str | None = None, **init) -> nn.Module:
    """The module and all below it; dictionaries of modules stay torch's own."""
    children = {name: persistent(child) for name, child in module.named_children()}
    if isinstance(module, nn.ModuleDict):
        return nn.ModuleDict(children)
    record = Persistent(module, kind or type(module).__name__, **init)
    record._modules.update(children)
    return record


def edm_pickle(net: nn.Module, settings: dict, wrapper: str = "EDMPrecond", **attributes) -> bytes:
    """What EDM publishes: a dictionary with the preconditioned network under `ema`."""
    inner = persistent(net, in_channels=3, out_channels=3, **settings)
    outer = Persistent(nn.Module(), wrapper, img_channels=3, model_type=type(net).__name__, **settings)
    outer._modules["model"] = inner
    for name, value in ({"sigma_min": 0, "sigma_max": float("inf"), "sigma_data": 0.5} | attributes).items():
        setattr(outer, name, value)
    return dumps({"ema": outer})


def dumps(content) -> bytes:
    """Pickled with EDM's module names."""
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # pyright: ignore[reportAttributeAccessIssue]
    before = _reconstruct_persistent_obj.__module__
    sys.modules |= {"torch_utils": package, "torch_utils.persistence": module}
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    try:
        return pickle.dumps(content, protocol=4)
    finally:
        _reconstruct_persistent_obj.__module__ = before
        del sys.modules["torch_utils.persistence"], sys.modules["torch_utils"]


def torch_file(content, old: bool = False) -> bytes:
    """As torch.save writes it, or wrote it before 1.6."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def score_sde(net: nn.Module, average: dict) -> dict:
    """score-SDE's training state: the averages are a list without names; the warm-up left a numpy learning rate."""
    trainable = [name for name, p in net.named_parameters() if p.requires_grad]
    return {
        "optimizer": {"param_groups": [{"lr": np.float64(2e-4), "params": [0]}], "state": {}},
        "model": {f"module.{k}": v for k, v in net.state_dict().items()},
        "ema": {"decay": 0.9999, "num_updates": 3, "shadow_params": [average[k] for k in trainable]},
        "step": 3,
    }


def cifar10(folder: Path, images: int = 512, protocol: int = 2) -> tuple[np.ndarray, list[int]]:
    """`cifar-10-batches-py/test_batch` with random images, as Python 2 wrote it; what it holds."""
    rng = np.random.default_rng(0)
    data, labels = rng.integers(0, 256, (images, 3072), dtype=np.uint8), rng.integers(0, 10, images).tolist()
    (folder / "cifar-10-batches-py").mkdir(parents=True, exist_ok=True)
    written = pickle.dumps({"batch_label": b"testing batch 1 of 1", "labels": labels, "data": data}, protocol)
    for name in (b"labels", b"data"):  # Python 2's text, where the protocol is its own
        written = written.replace(b"X" + struct.pack("<I", len(name)) + name, b"U" + bytes([len(name)]) + name)
    (folder / "cifar-10-batches-py" / "test_batch").write_bytes(written)
    return data, labels


def from_functional(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of a functional WRN to those of `WideResNet`.

    Zagoruyko's code and Lee and Kim's SVHN classifier use such flat names. Their batch norms have no counters, so zeros
    are added.
    """
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"^group(\d)\.block(\d+)", lambda m: f"block{int(m[1]) + 1}.layer.{m[2]}", name)
        if name.startswith("block"):
            name = re.sub(r"bn(\d)", lambda m: f"bn{int(m[1]) + 1}", name)
            name = re.sub(r"conv(\d)$", lambda m: f"conv{int(m[1]) + 1}.weight", name)
            name = name.replace("convdim", "convShortcut.weight")
        else:
            name = {"conv0": "conv1.weight"}.get(name, re.sub(r"^bn\.", "bn1.", name))
        renamed[name] = value
        if name.endswith("running_mean"):
            renamed[name.replace("running_mean", "num_batches_tracked")] = value.new_zeros((), dtype=torch.long)
    return renamed
