"""Equal content has an equal fingerprint, and every change that can change a row has another."""

import functools
import importlib
import types

import numpy as np
import pytest
import torch
from torch import nn

from dp.runs.fingerprint import fingerprint


class Net(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.scale = nn.Linear(3, 2), scale

    def forward(self, x):
        return self.layer(x) * self.scale


class Doubled(Net):
    def forward(self, x):
        return 2 * super().forward(x)


def made(body: str, **names) -> types.FunctionType:
    """A function `f(x)` with this body, as a notebook would define it."""
    space = dict(names)
    exec(f"def f(x):\n    return {body}", space)
    return space["f"]


def closing(over):
    return lambda x: x + over


def looped():
    loop = {"name": "loop"}
    loop["self"] = loop
    return loop


EQUAL = {
    "networks": lambda: Net(),
    "functions": lambda: made("x + g(x)", g=made("x * 2")),
    "closures": lambda: closing(torch.arange(3.0)),
    "partials": lambda: functools.partial(closing(1), 2),
    "arrays": lambda: np.arange(6).reshape(2, 3),
    "loops": looped,
    "functions of packages": lambda: torch.sigmoid,
}
DIFFERENT = {
    "numbers": (1, 2),
    "kinds of numbers": (1, 1.0),
    "types of tensors": (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
    "shapes": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "attributes of a network": (Net(), Net(2.0)),
    "code of a network": (Net(), Doubled()),
    "bodies": (made("x + 1"), made("x + 2")),
    "helpers": (made("g(x)", g=made("x * 2")), made("g(x)", g=made("x * 3"))),
    "globals": (made("x * rate", rate=1.0), made("x * rate", rate=2.0)),
    "closures": (closing(1), closing(2)),
    "arguments of a partial": (functools.partial(closing(1), 2), functools.partial(closing(1), 3)),
    "functions inside": (made("[y + 1 for y in x]"), made("[y + 2 for y in x]")),
    "order": ([1, 2], [2, 1]),
}


@pytest.mark.parametrize("kind", EQUAL)
def test_equal_content_is_equal(kind):
    assert fingerprint(EQUAL[kind]()) == fingerprint(EQUAL[kind]())


@pytest.mark.parametrize("kind", DIFFERENT)
def test_other_content_is_other(kind):
    one, other = DIFFERENT[kind]
    assert fingerprint(one) != fingerprint(other)


def test_a_weight_and_a_hook_change_a_network():
    net, other, hooked = Net(), Net(), Net()
    with torch.no_grad():
        other.layer.bias[0] += 1e-6
    hooked.register_forward_hook(made("None"))
    assert len({fingerprint(one) for one in (net, other, hooked)}) == 3


def test_a_module_of_ones_own_counts_with_its_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_helper.py").write_text("def double(x):\n    return 2 * x\n")
    helper = __import__("own_helper")
    before = fingerprint(made("h.double(x)", h=helper))
    assert fingerprint(made("h.double(x)", h=helper)) == before
    (tmp_path / "own_helper.py").write_text("def double(x):\n    return 3 * x\n")
    assert fingerprint(made("h.double(x)", h=helper)) != before


def test_a_package_of_ones_own_counts_with_all_its_files_values_and_modules(tmp_path, monkeypatch):
    """A function that asks `own_package.core.f(x)` names the package alone."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_package").mkdir()
    files = {
        "own_package/__init__": "",
        "own_package/core": "from own_beside import times\nT, ALL = 1, {}\n",
        "own_beside": "",
    }
    files["own_beside"] = "def times(x):\n    return x\n"
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    package, core = __import__("own_package"), importlib.import_module("own_package.core")
    asked = made("p.core.times(x)", p=package)
    found = [fingerprint(asked)]
    assert fingerprint(asked) == found[0]
    for name in files:
        (tmp_path / f"{name}.py").write_text(files[name] + "# changed\n")
        found.append(fingerprint(asked))
    monkeypatch.setattr(core, "T", 2)
    found.append(fingerprint(asked))
    core.ALL["s"] = [0.2]
    assert len({*found, fingerprint(asked)}) == 6


def test_evaluation_mode_does_not_count():
    assert fingerprint(Net().train()) == fingerprint(Net().eval())


def test_an_object_without_content_is_refused():
    with pytest.raises(ValueError, match="got generator: its content cannot be seen"):
        fingerprint(x for x in ())
