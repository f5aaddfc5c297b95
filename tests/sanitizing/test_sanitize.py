"""dp sanitize from its command to its files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dp.commands import sanitize as command
from dp.datasets import digits_train
from dp.diffusion import denoisers
from dp.runs import sanitize, sanitize_networks, sanitized
from dp.runs.sanitize_passes import Passes
from dp.runs.sanitized import configured
from dp.runs.trained import looped

ROOT = Path(__file__).parents[2]
YAML = """\
# Two shades of gray, which a tiny network learns in a moment.
name: shades
loader: {_target_: shades_for_test.test, images: "${protocol.images}"}
eps: {linf: 8/255, l2: 0.5}
lanes: 4
draws_per_call: 2
"""
CLASSIFIER = """\
# A tiny network.
_target_: dp.classifiers.Classifier
net: {_target_: dp.weights.checkpoints.load, net: {_target_: shades_for_test.network}, file: shades.safetensors}
taps: ["1"]
"""
DENOISER = """\
# The exact denoiser of gray images, one brightness each.
_target_: shades_for_test.Flat
"""
MODULE = """\
import torch
from torch import nn
from dp.diffusion.denoisers import Denoiser
from dp.subset import Subset

def load(n, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = 0.2 + 0.25 * y.view(-1, 1, 1, 1) + 0.02 * torch.rand(n, 1, 8, 8, generator=g)
    return Subset(torch.arange(n), x, y)

def train():
    return load(60, 0)

def test(images):
    return load(images, 1)

def network():
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))

class Flat(Denoiser):
    def __init__(self):
        super().__init__(nn.Identity())

    def denoise(self, z, sigma, label=None):
        return z.median(dim=3).values.median(dim=2).values[:, :, None, None].expand_as(z)
"""
RECIPE = """\
# @package _global_
# Trains the tiny network.
training:
  _target_: dp.training.trainer.Training
  _partial_: true
  seed: 0
  steps: 120
  batch: 30
  optimizer: {_target_: torch.optim.Adam, _partial_: true, lr: 0.02}
  schedule: {_target_: torch.optim.lr_scheduler.ConstantLR, _partial_: true, factor: 1.0}
  log_every: 10
  save_every: 60
  data: {_target_: shades_for_test.train}
  task: {_target_: CLASSIFYING, _partial_: true}
  precision: float32
  threads: 1
  embedded: false
  test_images: 30
"""
WORDS = ["dataset=shades", "device=cpu", "sanitizer.batch=16", "sanitizer.rounds.coarse=3", "poison.rate=0.15"]
WORDS += ["sanitizer.rounds.variance=small", "sanitizer.rounds.t=0.05"]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A working folder with a dataset of one's own: folder, module and recipe."""
    root, plug = tmp_path_factory.mktemp("mine"), None
    for group, name, text in (
        ("dataset", "shades", YAML),
        ("classifier", "shades", CLASSIFIER),
        ("denoiser", "shades", DENOISER),
        ("training", "shades_classifier", RECIPE.replace("CLASSIFYING", "dp.training.tasks.classifying.Classifying")),
    ):
        plug = root / "plug"
        (plug / group).mkdir(parents=True)
        (plug / group / f"{name}.yaml").write_text(text)
    (root / "shades_for_test.py").write_text(MODULE)
    return root


@pytest.fixture(autouse=True)
def at_home(mine, monkeypatch):
    monkeypatch.chdir(mine)
    monkeypatch.syspath_prepend(str(mine))


def go(results, *words) -> int:
    return command.main(["--config-dir", "plug", *WORDS, f"results={results}", *words])


@pytest.fixture(scope="module")
def whole(mine, tmp_path_factory):
    """The folder of a finished sanitizing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(mine)
        patch.syspath_prepend(str(mine))
        root = tmp_path_factory.mktemp("whole")
        assert go(root) == 0
    (folder,) = root.iterdir()
    return folder


def same(one: Path, other: Path) -> bool:
    """True if all that a sanitizing makes is equal, byte for byte."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names == sorted(path.name for path in other.glob("*.safetensors"))
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in [*names, "changes.csv"])


def test_a_poisoned_set_is_sanitized(whole):
    """The patch is an outlier for this denoiser, so it goes, and what the network sees then is the true label."""
    summary = json.loads((whole / "summary.json").read_text())
    before, after = (summary["models"][name] for name in ("poisoned", "sanitized"))
    assert before["success"]["value"] > 90
    assert after["success"]["value"] < 10
    assert min(before["accuracy"]["value"], after["accuracy"]["value"]) > 90
    assert summary["labels"]["true_positive"]["value"] == 100
    assert summary["labels"]["false_positive"]["value"] == 0
    assert summary["flagged"] == [0]
    assert (summary["images"], summary["poisoned"]) == (60, 9)
    # 4 chunks of 16, one of the nine images that are passed again, and one for the picture
    assert summary["evaluations"] == (4 + 1 + 1) * 16 * 5 * 13
    assert summary["seconds"] > 0


def test_its_files(whole):
    page = (whole / "report.md").read_text()
    assert "| trained on the set as it was given |" in page
    assert "denoiser trained on: clean" in page
    assert (whole / "rounds.png").read_bytes().startswith(b"\x89PNG")
    rows = [line.split(",") for line in (whole / "changes.csv").read_text().split("\n")[:-1]]
    assert rows[0] == ["id", "given", "new", "kind", "new_image", "poisoned", "true"]
    assert len(rows) == 10
    assert all(row[1] == "0" and row[2] == row[6] != "0" and row[5] == "1" for row in rows[1:])
    tensors = load_file(whole / "changes.safetensors")
    assert tensors["ids"].tolist() == [int(row[0]) for row in rows[1:]]
    assert tensors["y"].tolist() == [int(row[2]) for row in rows[1:]]
    assert tensors["x"].dtype == torch.uint8
    assert tensors["x"].max() < 210  # the white patch is gone
    assert not list(whole.glob("states-*"))


def test_resume_after_every_chunk_and_every_saved_step_gives_the_same_bytes(whole, tmp_path, monkeypatch, capsys):
    """The process is stopped whenever something is saved, and started again."""
    write, starts = sanitize.record.write_atomic, 0

    def stop(path, data):
        write(path, data)
        if path.suffix in (".safetensors", ".pt") and path.name not in seen:
            seen.add(path.name)
            raise KeyboardInterrupt

    seen: set[str] = set()
    for module in ("dp.training.trainer", "dp.runs.sanitize_passes"):
        monkeypatch.setattr(f"{module}.{'write_atomic' if 'trainer' in module else 'record.write_atomic'}", stop)
    while go(tmp_path) == 130:
        starts += 1
    (folder,) = tmp_path.iterdir()
    assert starts >= 8
    assert "the same command goes on" in capsys.readouterr().out
    assert same(whole, folder)


def test_a_killed_process_goes_on_to_the_same_bytes(whole, mine, tmp_path):
    words = [sys.executable, "-m", "dp", "sanitize", "--config-dir", "plug", *WORDS, f"results={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{mine}", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(words, cwd=mine, env=environment, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("*/labels-00001.safetensors")):
        assert started.poll() is None
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()
    (folder,) = tmp_path.iterdir()
    assert not (folder / "summary.json").exists()
    assert go(tmp_path) == 0
    assert same(whole, folder)


def test_a_torn_line_of_the_time_is_left_out(tmp_path):
    """The disk was full, or the power failed."""
    sanitize_networks.note(tmp_path, 2.0)
    with (tmp_path / sanitize_networks.TIMES).open("a") as file:
        file.write('{"sec')
    sanitize_networks.note(tmp_path, 3.0)
    assert sanitize_networks.seconds_of(tmp_path) == 5.0


@pytest.mark.parametrize("device", ["cuda:0", "cpu"])
def test_networks_are_trained_in_the_recipes_precision(device):
    """On a GPU; a CPU trains in float32."""
    job = configured(["dataset=cifar10"])
    config = {**job.config, "training": {**job.recipes["classifier"], "precision": "bfloat16"}}
    training = looped(config, SimpleNamespace(net=nn.Linear(1, 1)), device)
    assert training.autocast == (torch.bfloat16 if device == "cuda:0" else None)


def test_a_finished_one_is_read(whole, capsys):
    assert go(whole.parent) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "already finished, nothing to do" in out
    assert "true positive rate 100.0" in out


def test_the_second_pass_makes_the_states_of_the_first(mine):
    """Chunks of other images, of the same width: the labels of the states are those of the first pass."""
    job = configured([*WORDS, "results=none"], ["plug"])
    sets = sanitize.sets_of(job)
    shop = sanitize.Workshop(job, "cpu")
    classifier, _ = shop.training("classifier", sets.data, "classifier")
    denoiser = sanitize.Run(job, sets, shop).denoiser
    folder = mine / "passes"
    folder.mkdir()
    passes = Passes(job.sanitizer, sets.data, denoiser, classifier.eval(), folder, "cpu")
    labels, index = passes.labels(), torch.arange(3, 60, 7)
    (part,) = passes.kept(index)
    again = torch.stack([classifier(x.float() / 255).argmax(1) for x in part.states.unbind(1)], 1)
    assert torch.equal(part.places, index)
    assert torch.equal(again[:, 1:], labels[index][:, 1:])
    assert part.states.shape == (9, 51, 1, 8, 8)
    assert (part.distance[:, 0] == 0).all()
    assert (part.distance[:, 1:] > 0).all()
    shutil.rmtree(folder)


def test_a_set_as_it_is(tmp_path):
    """Without a poison of ours there is neither an attack success nor a rate of true positives."""
    words = [word for word in WORDS if not word.startswith("poison")]
    assert command.main(["--config-dir", "plug", *words, f"results={tmp_path}", "poison=none"]) == 0
    (folder,) = tmp_path.iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["labels"]["true_positive"] is None
    assert summary["models"]["sanitized"]["success"] is None
    assert summary["models"]["sanitized"]["accuracy"]["value"] > 90
    assert (folder / "changes.csv").read_text().startswith("id,given,new,kind,new_image\n")
    assert "| - | - |" in (folder / "report.md").read_text()


def test_the_evaluations_are_the_calls_times_their_width(mine, monkeypatch, tmp_path):
    seen = []

    def counted(self, z, sigma, label=None):
        seen.append(len(z))
        return forward(self, z, sigma, label)

    forward = denoisers.Denoiser.forward
    monkeypatch.setattr(sanitize, "cost_of", lambda *args: sanitize.Cost(1, 1.0, 1.0))
    monkeypatch.setattr(denoisers.Denoiser, "forward", counted)
    assert go(tmp_path) == 0
    (path,) = tmp_path.glob("*/summary.json")
    assert json.loads(path.read_text())["evaluations"] == sum(seen)


def test_one_step_of_training_is_enough(tmp_path):
    short = ["sanitizer.classifier.steps=1", "sanitizer.finetuning.steps=1", "sanitizer.images=64"]
    words = ["dataset=digits", "device=cpu", "sanitizer.rounds.coarse=1", "sanitizer.rounds.count=1", *short]
    assert command.main([*words, f"results={tmp_path}"]) == 0


def test_a_classifier_gives_only_its_network(capsys):
    """Adversarially trained or not, it is trained by the same recipe, so the folder is the same."""
    first, other = configured([]), configured(["classifier=digits_at"])
    assert first.folder == other.folder
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "classifier=digits_at gives only the network; its training is digits_classifier"


def test_test_images_that_are_training_images_are_counted():
    train, test = digits_train().x, torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    test[3] = train[7]
    assert sanitize.repeated(train, test) == 1


def test_a_set_of_ones_own_has_no_word_of_a_budget(whole, capsys):
    configured([*WORDS, "results=none"], ["plug"])
    assert "budget" not in capsys.readouterr().out


def test_test_images_of_the_target_class_alone_are_refused(mine):
    job = configured([*WORDS, "results=none"], ["plug"])
    job.config["dataset"]["loader"]["images"] = None
    job.recipes["classifier"]["test_images"] = 1  # of class 0
    with pytest.raises(ValueError, match=r"need test images outside class 0, got none: set poison\.target"):
        sanitize.sets_of(job)


def test_archive(whole, tmp_path):
    copy = sanitized.archive(whole, tmp_path)
    assert sorted(path.name for path in copy.iterdir()) == ["changes.csv", "report.md", "summary.json"]
    with pytest.raises(ValueError, match="need a finished sanitizing"):
        sanitized.archive(tmp_path)


def test_what_changes_the_result_changes_the_key():
    def key(*words):
        return configured(["dataset=digits", *words]).folder.name

    first = key()
    assert first == key("sanitizer=dataelixir", "poison=patch", "device=cpu", "overwrite=true")
    words = ["sanitizer.seed=1", "poison=blended", "poison.trigger.side=2", "sanitizer.denoiser_trained_on=poisoned"]
    words.append("sanitizer.classifier.steps=9")
    others = [key(word) for word in words]
    assert len({first, *others}) == 1 + len(words)


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "svhn"])
@pytest.mark.parametrize("poison", ["patch", "blended", "sinusoidal", "none"])
def test_every_poison_fits_every_dataset_with_recipes(dataset, poison):
    job = configured([f"dataset={dataset}", f"poison={poison}"])
    x = torch.full((2, 1 if dataset == "digits" else 3, 16, 16), 0.5)
    assert job.poison.marked(x).shape == x.shape
    assert job.sanitizer.rounds.nfe(lambda t: 1 + t) == (100 if dataset == "digits" else 750)
    assert set(job.recipes) == {"classifier", "finetuning"}


@pytest.mark.parametrize(
    ("words", "lr"),
    [
        (["dataset=digits"], 0.02),
        (["dataset=cifar10"], 0.02),
        (["dataset=svhn"], 0.002),
        (["dataset=svhn", "sanitizer.finetuning.lr=0.3"], 0.3),
    ],
)
def test_fine_tuning_has_a_fifth_of_the_recipes_rate(words, lr):
    job = configured(words)
    assert job.recipes["finetuning"]["optimizer"]["lr"] == pytest.approx(lr)
    assert job.recipes["classifier"]["optimizer"]["lr"] == (0.01 if "dataset=svhn" in words else 0.1)


def test_fine_tuning_of_ones_own_recipe_has_a_fifth_of_its_rate():
    job = configured([*WORDS, "results=none"], ["plug"])
    assert job.recipes["finetuning"]["optimizer"]["lr"] == pytest.approx(0.2 * 0.02)


def test_the_papers_values():
    job = configured(["dataset=cifar10"])
    one = job.sanitizer
    assert (one.rounds.t, one.rounds.count, one.rounds.last, one.rounds.variance) == (0.15, 5, 10, "large")
    assert (one.second, one.threshold, one.quantile) == (5, 2.0, 0.8)
    assert (job.poison.rate, job.poison.target) == (0.1, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["poison=pach"], "unknown option poison=pach (did you mean patch"),
        (["sanitizer=elixir"], "unknown option sanitizer=elixir (did you mean dataelixir"),
        (["datset=digits"], "got datset=digits (did you mean dataset"),
        (["poison=none", "poison.rate=0.3"], "need poison.rate=0 and poison.target=-1 without a trigger"),
        (["sanitizer.images=20"], "sanitizer.classifier: need a batch of at most 20 images, got batch=64"),
        (["purifier=hetero"], "got purifier=hetero: a sanitizing has no purifier and no attack"),
        (["sanitizer.round.t=1"], "unknown key sanitizer.round"),
        (["sanitizer.rounds.t=2"], "need coarse, last, count >= 1 and last / 1000 < t <= 1"),
        (["sanitizer.rounds.variance=learned"], "need variance among small, large"),
        (["sanitizer.denoiser_trained_on=both"], "need sanitizer.denoiser_trained_on clean or poisoned"),
        (["sanitizer.batch=0"], "need sanitizer.second, batch, images >= 1"),
        (["sanitizer.classifier.name=digit_classifier"], "unknown option training=digit_classifier (did you mean"),
        (["sanitizer.images=2000"], "need 1 <= images <= 1285"),
        (["poison.rate=0"], "need 0 < poison.rate < 1"),
        (["poison.rate=0.99"], "poisoned images, those outside class 0"),
        (["poison.target=10"], "need poison.target <= 9, the last label"),
        (["poison.trigger.side=17"], "need 1 <= side <= 16"),
        (["denoiser=none"], "need a denoiser, got none"),
        (["denoiser=edm_cifar10", "sanitizer.denoiser_trained_on=poisoned"], "need networks for images of 1x16x16"),
        (["classifier.net.net.channels=3"], "need networks for images of 1x16x16"),
        (["classifier.net.net.classes=4"], "need a logit for every label"),
        (["classifier=rdc"], "need a network to train under classifier.net.net, got none in classifier=rdc"),
        (
            ["sanitizer.denoiser_trained_on=poisoned", "sanitizer.denoiser.name=digits_classifier"],
            "need a recipe that trains a Denoiser, got one for a Classifier: sanitizer.denoiser.name=digits_classifier",
        ),
        (["dataset=imagenette"], "unknown option training=imagenette_classifier"),
        (["classifier.taps=[]"], "need taps for an attention map"),
    ],
)
def test_mistakes_are_one_line_and_code_2(words, message, tmp_path, capsys):
    assert command.main(["device=cpu", f"results={tmp_path}", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.rglob("labels-*"))


def test_a_damaged_chunk_is_one_line(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / whole.name)
    (tmp_path / whole.name / "summary.json").unlink()
    (tmp_path / whole.name / "labels-00002.safetensors").write_bytes(b"torn")
    assert go(tmp_path) == 2
    err = capsys.readouterr().err
    assert "labels-00002.safetensors as it was written" in err
    assert err.count("\n") == 1


def test_digits_are_poisoned_as_the_issue_asks(tmp_path):
    """A white 3x3 corner in a tenth of the 1285 images, none of class 0."""
    job = configured(["dataset=digits"])
    data, true = sanitize.sets_of(job), digits_train()
    assert int(data.poisoned.sum()) == 128
    assert (true.y[data.poisoned] != 0).all()
    assert (data.data.x[data.poisoned][:, :, 13:, 13:] == 1).all()
    assert len(data.attacked.x) == int((data.test.y != 0).sum())
    assert isinstance(job.poison.trigger, partial)
    assert isinstance(sanitize.Workshop(job, "cpu").training("classifier", data.data, "classifier")[0], nn.Module)
