"""The Python door: the same bytes as the command, whatever is given, and errors of one line."""

import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dp
from dp.commands import run
from dp.output import record
from dp.runs import given
from dp.subset import Subset
from tests.docs import examples
from tests.helpers.processes import forked, wait

MODULE = """
import numpy as np
import torch
from torch import nn
from dp.subset import Subset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.linspace(-1, 1, 480).view(10, 48).sin() * 3)

    def forward(self, x):
        return x.flatten(1) @ self.w.T


def purify(x, denoiser, classifier, rng, *, on_step=None):
    return (x + 0.1 * rng.randn_like(x)).clamp(0, 1)


def arrays():
    x = np.random.RandomState(0).rand(6, 3, 4, 4).astype(np.float32)
    return x, Net()(torch.from_numpy(x)).argmax(dim=1).numpy()


def images(images):
    x, y = arrays()
    return Subset(torch.arange(len(x)), torch.from_numpy(x), torch.from_numpy(y))
"""
YAMLS = {
    "purifier/noisy": "{_target_: own_api.purify, _partial_: true}",
    "classifier/linear": "{_target_: dp.classifiers.Classifier, net: {_target_: own_api.Net}}",
    "dataset/few": "{name: images, loader: {_target_: own_api.images, images: 6}, eps: {linf: 8/255, l2: 0.5}, "
    "lanes: 6, draws_per_call: 4}",
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of a user, importable, in the working folder."""
    (tmp_path / "own_api.py").write_text(textwrap.dedent(MODULE))
    for name, text in YAMLS.items():
        path = tmp_path / "mine" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "cache"))
    yield __import__("own_api")
    del sys.modules["own_api"]


def test_three_lines_of_python_give_the_bytes_of_the_command(own, tmp_path, monkeypatch):
    result = dp.evaluate(own.purify, own.Net(), own.arrays(), "linf 16/255", settings={"protocol.seeds": [3]})
    words = ["dataset=few", "purifier=noisy", "classifier=linear", "threat_model.eps=16/255", "protocol=strict"]
    monkeypatch.setattr(sys, "argv", ["dp run", "--config-dir", "mine", *words, "protocol.seeds=[3]", "results=told"])
    assert wait(forked(run.main, tmp_path / "said")) == 0, (tmp_path / "said").read_text()
    (folder,) = (tmp_path / "told").glob("few-*")
    assert (result.folder / record.IMAGES).read_bytes() == (folder / record.IMAGES).read_bytes()
    assert len(result.samples) == 6 * 20 * 3  # images, samples, conditions
    assert result.rows["robust"][0] == pytest.approx(record.read_summary(folder)["robust"]["average"]["value"])
    assert "robust accuracy" in result.table()


def test_a_finished_run_is_read_and_changed_weights_are_another_run(own):
    settings = {"protocol.seeds": [0], "attack.iterations": 1}
    ask = {"data": own.arrays(), "protocol": "default", "settings": settings}
    first = dp.evaluate(own.purify, own.Net(), **ask)
    written = (first.folder / record.IMAGES).stat().st_mtime_ns
    assert dp.evaluate(own.purify, own.Net(), **ask).folder == first.folder
    assert (first.folder / record.IMAGES).stat().st_mtime_ns == written
    other = own.Net()
    other.w += 0.01
    assert dp.evaluate(own.purify, other, **ask).folder != first.folder
    assert [result.folder for result in dp.load("results/runs/*")] != []
    with pytest.raises(ValueError, match="got none for nowhere"):
        dp.load("nowhere/*")


def test_given_images_may_take_the_settings_of_a_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "cache"))
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    data = Subset(torch.tensor([7, 8, 9, 10]), images, torch.tensor([0, 1, 2, 3]))
    settings = {"protocol.seeds": [0], "attack.iterations": 1, "protocol.votes": 2}
    result = dp.evaluate("diffpure", data=data, like="digits", protocol="default", settings=settings)
    assert result.summary["config"]["purifier"]["t"] == 0.2  # that of digits
    assert sorted(result.samples["id"].unique()) == [7, 8, 9, 10]


def test_numbers_of_numpy_and_torch_are_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "cache"))
    settings = {
        "protocol.seeds": np.array([3]),
        "attack.iterations": np.int64(1),
        "threat_model.eps": torch.tensor(0.25),
    }
    result = dp.evaluate("none", protocol="default", settings={**settings, "protocol.images": np.int32(2)})
    config = result.summary["config"]
    assert (config["protocol"]["seeds"], config["attack"]["iterations"]) == ([3], 1)
    assert config["threat_model"]["eps"] == 0.25


def test_the_page_about_python_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "cache"))
    (code,) = examples.files(page).values()
    exec(code, {"__name__": "notebook"})
    assert "robust accuracy" in capsys.readouterr().out


IMAGES = (np.zeros((2, 3, 4, 4), np.float32), np.array([0, 1]))
MISTAKES = {
    "no images": ({"data": np.zeros(3)}, "need data as images and labels"),
    "too bright": ({"data": (255 * np.ones((2, 3, 4, 4)), IMAGES[1])}, "need images as floats in \\[0,1\\]"),
    "labels of another length": ({"data": (IMAGES[0], np.array([0]))}, "need images \\(N,C,H,W\\) and labels"),
    "labels that are floats": ({"data": (IMAGES[0], np.array([0.0, 1.0]))}, "need labels as whole numbers"),
    "another signature": ({"purifier": lambda x: x, "data": IMAGES}, "need purifier as a function"),
    "no function": ({"purifier": 3, "data": IMAGES}, "need purifier as the name of an option or a function"),
    "no network": ({"classifier": 3, "data": IMAGES}, "need classifier as a network"),
    "no denoiser": ({"denoiser": nn.Identity(), "data": IMAGES}, "need denoiser as a dp.diffusion"),
    "an unknown option": ({"purifier": "diffpur"}, "diffpure"),
    "ids that come twice": ({"data": Subset(torch.tensor([4, 4]), *map(torch.tensor, IMAGES))}, "need ids that tell"),
    "a cost": ({"data": IMAGES, "settings": {"cost": True}}, "need cost in a command"),
    "another number of images": ({"data": IMAGES, "settings": {"protocol.images": 1}}, "need protocol.images as many"),
    "a threat in pieces": ({"threat": ("linf", 8 / 255)}, "need threat as text"),
    "an unknown threat": ({"threat": "Linf 8/255"}, "unknown option threat_model=Linf"),
    "an unknown key": ({"settings": {"atack.iterations": 1}}, "unknown key atack"),
    "a key that nothing reads": ({"settings": {"purifier.nothing": 3}}, "nothing"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "cache"))
    arguments, told = MISTAKES[mistake]
    with pytest.raises(ValueError, match=told) as caught:
        dp.evaluate(**{"classifier": nn.Flatten(), **arguments})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_given_images_depart_from_no_protocol_by_their_number(own):
    settings = {"protocol.seeds": [0], "protocol.votes": 1}
    result = dp.evaluate(own.purify, own.Net(), own.arrays(), protocol="null_control", settings=settings)
    assert {change["key"] for change in result.summary["caveats"]["departures"]} == {"protocol.seeds", "protocol.votes"}


def test_another_process_says_that_it_was_not_given_the_object():
    with pytest.raises(ValueError, match="call dp\\.evaluate again with it"):
        given.images("images", "0" * 64)


def test_there_is_no_other_attribute():
    with pytest.raises(AttributeError, match="no attribute evaluated"):
        _ = dp.evaluated
