"""Training: averages in closed form, shared gradients, and the same bits after any interruption."""

import functools
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.commands import train
from dp.datasets import digits_train
from dp.diffusion.denoisers import EDM, Denoiser
from dp.files.cache import Asset, verify
from dp.nets.small_unet import SmallUNet
from dp.nets.wrn import WideResNet
from dp.runs import trained
from dp.runs.compose import CONF
from dp.subset import Subset
from dp.training import trainer as training
from dp.training.augment import flip, shift
from dp.training.distributed import SharedNorm, average_gradients, share_norms
from dp.training.tasks.classifying import Classifying
from dp.training.tasks.denoising import Denoising
from dp.training.trainer import Training

ROOT = Path(__file__).parents[2]
EDM_LEVELS = {"p_mean": -1.2, "p_std": 1.2, "clamp": None}
TINY = ["training.batch=8", "training.save_every=1", "training.log_every=2", "training.test_images=8"]


class Gain(nn.Module):
    """A network with one parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return x * self.scale


class Noisy(nn.Module):
    """SmallUNet, which begins at zero, plus dropout."""

    def __init__(self):
        super().__init__()
        self.drop, self.net = nn.Dropout(0.3), SmallUNet(channels=1, width=8, wide=8, emb=8)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.drop(x) + self.net(self.drop(x), label)


def small_data(n: int = 24) -> Subset:
    generator = torch.Generator().manual_seed(5)
    return Subset(torch.arange(n), torch.rand(n, 1, 16, 16, generator=generator), torch.arange(n) % 10)


def unet() -> SmallUNet:
    """Seeded, without the zeros it begins with, so that every parameter has a gradient."""
    torch.manual_seed(0)
    net = SmallUNet(channels=1)
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return net


def denoiser_training(net: nn.Module | None = None, **changes) -> Training:
    torch.manual_seed(0)
    task = Denoising(EDM(net or Noisy()), small_data(), **EDM_LEVELS, augment=[flip])
    given = {
        "optimizer": functools.partial(torch.optim.Adam, lr=1e-2),
        "schedule": functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-2, total_steps=8),
        "ema": functools.partial(training.warm, decay=0.9),
    }
    return Training(task, **{**given, "seed": 1, "steps": 8, "batch": 6, "save_every": 3, "log_every": 2, **changes})


def classifier_training(**changes) -> Training:
    torch.manual_seed(0)
    net = WideResNet(depth=10, widen=1, channels=1)
    moved = functools.partial(shift, reach=1, mode="replicate")
    task = Classifying(Classifier(net), small_data(), augment=[moved])
    given = {
        "optimizer": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
        "schedule": functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=8),
    }
    return Training(task, **{**given, "seed": 1, "steps": 8, "batch": 10, "save_every": 3, "log_every": 2, **changes})


def test_average_is_its_recursion():
    run = denoiser_training(Gain())
    weights, decays = [1.0], []
    for step in range(8):
        run.advance()
        weights.append(run.net.scale.item())
        decays.append(min(0.9, (step + 1) / (step + 10)))
    shares = [(1 - d) * math.prod(decays[i + 1 :]) for i, d in enumerate(decays)]
    expected = math.prod(decays) + sum(s * w for s, w in zip(shares, weights[1:], strict=True))
    assert run.average is not None
    assert run.average.scale.item() == pytest.approx(expected, abs=1e-6)
    assert run.average.scale.dtype == torch.float32


def test_halflife():
    """Half of the weight is gone after `images` images; at first it is 5 % of those seen."""
    decay = functools.partial(training.halflife, batch=50, images=1000, rampup=0.05)
    assert math.prod(decay(step) for step in range(10_000, 10_020)) == pytest.approx(0.5)
    assert decay(0) == 0.0
    assert decay(100) == pytest.approx(0.5 ** (50 / 250))


def bits(run: Training) -> list[Tensor]:
    return [t.clone() for net in (run.net, run.result) for t in net.state_dict().values()]


@pytest.mark.parametrize("made", [denoiser_training, classifier_training])
@pytest.mark.parametrize("stopped", [1, 3, 5, 7])
def test_resume_is_exact(made, stopped, tmp_path):
    """Stopped after any step, with or without a state on disk, the weights, the average and the curve are the same."""
    whole, path = made(), tmp_path / "state.pt"
    whole.run(tmp_path / "whole.pt", lambda _: None, lambda _: None)

    def stop(now: Training) -> None:
        if now.step == stopped:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made().run(path, stop, lambda _: None)
    torch.rand(3)  # whatever another process does with the global generator
    again = made()
    if path.exists():
        again.restore(path)
    assert again.step == stopped // 3 * 3 - (3 if stopped % 3 == 0 else 0)
    again.run(path, lambda _: None, lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(bits(whole), bits(again), strict=True))
    assert again.history == whole.history
    assert [step for step, _ in again.history] == [2, 4, 6, 8]


def test_dropout_is_on_in_training_and_differs_from_step_to_step():
    run = denoiser_training(ema=None)
    assert run.net.training
    run.task.draw = lambda b, generator: tuple(torch.ones(6, 1, *s) for s in ((16, 16), (1, 1), (16, 16)))
    first = run.gradients()
    assert torch.equal(first, run.gradients())
    run.step += 1
    assert not torch.equal(first, run.gradients())


def test_accumulated_gradient_is_that_of_the_batch():
    one, three = (denoiser_training(unet(), accumulate=k) for k in (1, 3))
    torch.testing.assert_close(one.gradients(), three.gradients())
    for a, b in zip(one.net.parameters(), three.net.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5)


def test_a_loss_that_is_not_finite_ends_the_training():
    constant = functools.partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)
    run = denoiser_training(optimizer=functools.partial(torch.optim.SGD, lr=1e30), schedule=constant)
    with pytest.raises(ValueError, match=r"need a finite loss, got (nan|inf)"):
        run.run(Path("unused"), lambda _: None, lambda _: None)


def test_what_is_not_a_state_is_refused_and_not_executed(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"net": functools.partial(print, "executed")}, path)
    for content in (path.read_bytes(), b"", b"junk"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="as this training wrote it"):
            denoiser_training().restore(path)


def shared_training(model: str) -> Training:
    return classifier_training() if model == "classifier" else denoiser_training(unet())


def one_of_two(rank: int, folder: str) -> None:
    """The gradients of one process of two, and its images."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for model in ("denoiser", "classifier"):
        run, seen = shared_training(model), []
        loss = run.task.loss
        run.task.loss = lambda *batch, loss=loss, seen=seen: (seen.append(batch[0]), loss(*batch))[1]
        run.gradients()
        found = {n: p.grad for n, p in run.net.named_parameters()}
        torch.save((found, dict(run.net.named_buffers()), seen), f"{folder}/{model}{rank}.pt")
    dist.destroy_process_group()


def test_one_process_alone_shares_nothing():
    """The same outputs, statistics and gradients, bit for bit, under the same names."""
    found = []
    for shared in (False, True):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
        if shared:
            share_norms(net)
        assert isinstance(net[1], SharedNorm) is shared
        net(torch.arange(64.0).view(1, 1, 8, 8).sin()).square().sum().backward()
        if shared:
            average_gradients(net)
        found.append({**net.state_dict(), **{f"{name}.grad": p.grad for name, p in net.named_parameters()}})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_two_processes_compute_what_one_does(tmp_path):
    """The same mean gradient (and BatchNorm moments) of a global batch that they share without overlap."""
    mp.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    for model in ("denoiser", "classifier"):
        run = shared_training(model)
        whole = shared_training(model).task.draw(run.batch, torch.Generator().manual_seed(1))[0]
        run.gradients()
        parts = [torch.load(tmp_path / f"{model}{rank}.pt") for rank in (0, 1)]
        for grads, buffers, _ in parts:
            for name, p in run.net.named_parameters():
                torch.testing.assert_close(grads[name], p.grad, atol=1e-6, rtol=1e-5)
            for name, b in run.net.named_buffers():
                torch.testing.assert_close(buffers[name], b, atol=1e-6, rtol=1e-5)
        assert all(torch.equal(parts[rank][2][0], whole[rank::2]) for rank in (0, 1))


@pytest.mark.parametrize("path", sorted((CONF / "training").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_fits_its_signatures(path):
    """Its first lines say the command that uses it."""
    words = re.findall(r"# python scripts/train.py (.*)", path.read_text())[0].split()
    config, model, _ = trained.composed(words)
    assert trained.recipe_of(dict(word.split("=") for word in words), model, ()) == path.stem
    trained.check_recipe(config)
    assert {*trained.OWN} - {"files", "others", "start"} <= set(config["training"])
    assert trained.key_of(config, model).startswith(f"train-{path.stem.partition('_')[0]}-{model}-")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "need model=denoiser or model=classifier or model=purifier, got none"),
        (["model=vae"], "got model=vae"),
        (["model=denoiser", "out=a.pt"], "need out=FILE.safetensors, got out=a.pt"),
        (["model=denoiser", "denoiser.net.file=a.pkl"], "need out=FILE.safetensors, got none"),
        (["model=denoiser", "training.step=3"], "unknown key training.step"),
        (["model=denoiser", "training.steps=many"], "need training.steps as a whole number, got 'many'"),
        (["model=denoiser", "training.accumulate=3"], "unknown key training.accumulate"),
        (["model=denoiser", "+training.accumulate=3"], "a multiple of accumulate x processes"),
        (["model=denoiser", "training.steps=20"], "need more steps for this schedule, got steps=20"),
        (["model=denoiser", "denoiser.net.net=null"], "need a network under denoiser.net.net, got none"),
        (["model=purifier"], "need a network under purifier.net.net, got none in purifier=hetero"),
        (["model=purifier", "purifier=none", "training=digits_denoiser"], "got none in purifier=none: choose purifier"),
        (["model=denoiser", "denoiser=none"], "need a network under denoiser.net.net, got none in denoiser=none"),
        (["model=denoiser", "+training.others.a=denoiser/mars"], "training.others.a: unknown option denoiser=mars; "),
        (["model=denoiser", "+training.others.a=attack/none"], "need training.others.a as one of denoiser/NAME"),
        (["model=denoiser", "+training.others=digits"], "need training.others as a mapping"),
        (["model=denoiser", "+training.others.a=denoiser/digits"], "unknown key training.task.a"),
        (["model=denoiser", "+training.start.file=mars.safetensors"], "missing 1 of 1 files: "),
        (["model=denoiser", "+training.start.file=digits_classifier.safetensors"], "to hold the tensors of SmallUNet"),
        (["model=denoiser", "+training.start.files=a"], "unknown key training.start.files (did you mean file?)"),
        (["model=denoiser", "+training.start=a"], "need training.start as a mapping"),
        (["model=classifier", "training.precision=half"], "need training.precision float32 or bfloat16, got half"),
        (["model=denoiser", "training.optimizer.lr=abc"], "need training.optimizer.lr as a number, such as 0.002, got"),
        (
            ["model=denoiser", "training.schedule.max_lr=null"],
            "need values that the optimizer and the schedule can use",
        ),
        (["model=denoiser", "training.threads=0"], "need training.threads as a whole number >= 1, got 0"),
        (["model=denoiser", "training.test_images=2.5"], "need training.test_images as a whole number >= 1, got 2.5"),
        (["model=denoiser", "training.test_images=513"], "need 1 <= images <= 512"),
        (["model=denoiser", "training=none"], "unknown option training=none; there are: canvas_classifier"),
    ],
)
def test_mistakes_are_one_line(args, words, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train.py", *args])
    assert train.main([*args, f"results={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_weights_go_where_the_configuration_finds_them(monkeypatch, tmp_path):
    monkeypatch.setenv("DP_CACHE", str(tmp_path))
    config, model, out = trained.composed(["model=denoiser"])
    assert trained.destination(config, model, out) == trained.ASSETS / "digits_denoiser.safetensors"
    config, model, out = trained.composed(["model=classifier", "dataset=svhn"])
    assert trained.destination(config, model, out) == tmp_path / "svhn_wrn_28_10.safetensors"


def test_help_says_all(capsys):
    assert train.main(["--help"]) == 0
    assert "torchrun" in capsys.readouterr().out


def launched(args: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    return subprocess.Popen([sys.executable, "scripts/train.py", *args], cwd=ROOT, env=environment)


def test_classifier_from_the_command_line(tmp_path, capsys):
    """The file, its hash and its accuracy; the same command again goes on from the last step and says the same."""
    out = tmp_path / "new" / "w.safetensors"
    command = ["model=classifier", f"results={tmp_path}", f"out={out}", "training.steps=4", *TINY]
    assert train.main(command) == 0
    first, found = capsys.readouterr().out, hashlib.sha256(out.read_bytes()).hexdigest()
    assert f"sha256 {found}" in first
    assert f"to use it: classifier.net.file={out} classifier.net.sha256={found}" in first
    summary = json.loads(next(tmp_path.glob("train-digits-classifier-*/summary.json")).read_text())
    assert f"classifier: {summary['accuracy']:.1f} % of 8 test images" in first
    assert train.main(command) == 0
    again = capsys.readouterr().out
    assert ", from step 4" in again
    assert f"sha256 {found}" in again


def test_a_state_of_other_code_is_refused(tmp_path, monkeypatch, capsys):
    """A finished one too. overwrite=true begins anew."""
    command = ["model=classifier", f"results={tmp_path}", f"out={tmp_path}/w.safetensors", "training.steps=2", *TINY]
    assert train.main(command) == 0
    monkeypatch.setattr(trained, "training_hash", lambda config: "another")
    capsys.readouterr()
    assert train.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: need one code, plug-ins and weights for all steps of a training, got ")
    assert line.endswith(", now another): go back to those, or add overwrite=true to begin anew")
    assert train.main([*command, "overwrite=true"]) == 0
    assert ", from step" not in capsys.readouterr().out
    assert train.main(command) == 0


def test_other_test_images_judge_the_same_training(tmp_path, capsys):
    """Three of them, too: a picture has white images where there are none."""
    command = ["model=classifier", "classifier=digits_at", f"results={tmp_path}", f"out={tmp_path}/w.safetensors"]
    small = ["training.steps=4", "training.batch=8", "training.task.judge_attack.iterations=1"]
    for images in (8, 3):
        assert train.main([*command, *small, f"training.test_images={images}"]) == 0
    assert ", from step 4" in capsys.readouterr().out
    assert len([*tmp_path.glob("train-*")]) == 1


@pytest.mark.parametrize(("every", "goes"), [(2, "goes on from step 2"), (9, "begins again")])
def test_an_interruption_says_where_the_same_command_goes_on(every, goes, tmp_path, monkeypatch, capsys):
    def stop(self, now: Training) -> None:
        if now.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(train.Display, "__call__", stop)
    words = ["training.steps=4", *TINY, f"training.save_every={every}"]
    assert train.main(["model=classifier", f"results={tmp_path}", f"out={tmp_path}/w.safetensors", *words]) == 130
    assert f"interrupted at step 3: the same command {goes}" in " ".join(capsys.readouterr().out.split())


def test_new_weights_in_the_cache_can_be_used_at_once(tmp_path, monkeypatch):
    """The hash of the earlier file, noted at its first use, does not stand in the way."""
    monkeypatch.setenv("DP_CACHE", str(tmp_path))
    path, net = tmp_path / "mine.safetensors", nn.Linear(2, 1)
    for _ in range(2):
        sha256 = training.keep(net, path, half=False)
        assert verify(path, Asset(path.name)) == sha256
        nn.init.normal_(net.weight)


@pytest.mark.parametrize("path", sorted((CONF / "training").glob("digits_*.yaml")), ids=lambda p: p.stem)
def test_momentum_that_a_schedule_sets_stands_in_it(path):
    """A cycle of the learning rate also cycles the momentum, whatever the optimizer has."""
    schedule = yaml.safe_load(path.read_text())["training"]["schedule"]
    if schedule["_target_"].endswith("OneCycleLR"):
        assert (schedule["base_momentum"], schedule["max_momentum"]) == (0.85, 0.95)


def test_killed_and_started_again_it_ends_with_the_same_bytes(tmp_path, capsys):
    def command(name: str) -> list[str]:
        steps = ["training.steps=40", "training.threads=1", f"out={tmp_path}/{name}.safetensors"]
        return ["model=denoiser", f"results={tmp_path}/{name}", *steps, *TINY]

    assert train.main(command("whole")) == 0
    process, state = launched(command("killed")), None
    while state is None and process.poll() is None:
        state = next((tmp_path / "killed").glob("*/state.pt"), None)
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    assert not (tmp_path / "killed.safetensors").exists()
    capsys.readouterr()
    assert train.main(command("killed")) == 0
    assert ", from step " in capsys.readouterr().out
    whole, killed = (tmp_path / f"{name}.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    folders = [next((tmp_path / name).glob("train-*")) for name in ("whole", "killed")]
    assert folders[0].name == folders[1].name
    assert len({(folder / "loss.csv").read_bytes() for folder in folders}) == 1
    grid = plt.imread(folders[1] / "samples.png")
    assert grid.shape[:2] == (8 * 17 * 3, 8 * 17 * 3)
    assert grid.std() > 0.1
    assert (folders[1] / "loss.png").stat().st_size > 1000


def test_a_recipe_outside_the_tree(tmp_path, capsys):
    """--config-dir: a recipe of one's own, found by name."""
    (tmp_path / "training").mkdir()
    recipe = (CONF / "training" / "digits_classifier.yaml").read_text()
    (tmp_path / "training" / "mine.yaml").write_text(recipe)
    words = ["model=classifier", "training=mine", f"results={tmp_path}", f"out={tmp_path}/w.safetensors"]
    assert train.main([*words, "training.steps=2", *TINY, "--config-dir", str(tmp_path)]) == 0
    assert (tmp_path / "w.safetensors").exists()
    assert train.main(words) == 2
    assert "unknown option training=mine" in capsys.readouterr().err


class Counting(Classifying):
    """A task with a state that changes in `after_step`, and a loss that depends on it."""

    def __init__(self, classifier: Classifier, data: Subset, *, helper: Denoiser):
        super().__init__(classifier, data)
        self.helper, self.steps = helper, []

    def loss(self, *batch: Tensor) -> Tensor:
        return super().loss(*batch) * (1 + len(self.steps))

    def after_step(self, step: int) -> None:
        self.steps.append(step)

    def state(self) -> dict:
        return {**super().state(), "steps": list(self.steps)}

    def restore(self, state: dict) -> None:
        super().restore(state)
        self.steps = list(state["steps"])


def counting_training() -> Training:
    torch.manual_seed(0)
    net = WideResNet(depth=10, widen=1, channels=1)
    task = Counting(Classifier(net), small_data(), helper=EDM(Gain()))
    sgd, constant = torch.optim.SGD, torch.optim.lr_scheduler.ConstantLR
    given = {"optimizer": functools.partial(sgd, lr=0.1), "schedule": functools.partial(constant, factor=1.0)}
    return Training(task, seed=1, steps=4, batch=10, save_every=2, log_every=2, **given)


def test_a_tasks_state_is_told_each_step_and_restored(tmp_path):
    def stop(now: Training) -> None:
        if now.step == 3:
            raise KeyboardInterrupt

    whole, path = counting_training(), tmp_path / "state.pt"
    whole.run(tmp_path / "whole.pt", lambda _: None, lambda _: None)
    assert whole.task.state()["steps"] == [1, 2, 3, 4]
    with pytest.raises(KeyboardInterrupt):
        counting_training().run(path, stop, lambda _: None)
    again = counting_training()
    again.restore(path)
    assert (again.step, again.task.state()["steps"]) == (2, [1, 2])
    again.run(path, lambda _: None, lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(bits(whole), bits(again), strict=True))


def test_a_training_begins_with_the_given_weights_and_its_others_are_frozen(tmp_path):
    """`training.start`: the file's numbers, in float32. `training.others`: from files, in evaluation mode, frozen; they
    change the key.
    """
    words = ["model=classifier", "+training.start.file=digits_classifier.safetensors"]
    plain, model, _ = trained.composed(words)
    config = {**plain, "others": trained.others_of(plain, {"helper": "denoiser/digits_conditional"}, ())}
    assert (
        trained.key_of(config, model)
        != trained.key_of(plain, model)
        != trained.key_of(trained.composed(words[:1])[0], model)
    )
    adapter = trained.adapter_of(config, model, "cpu")
    file = load_file(trained.ASSETS / "digits_classifier.safetensors")
    state = adapter.net.state_dict()
    assert all(torch.equal(state[name], tensor.to(state[name].dtype)) for name, tensor in file.items())
    assert state["fc.weight"].dtype == torch.float32
    helper = trained.others_on(config, "cpu")["helper"]
    assert helper.classes == 10
    assert not helper.training
    assert not any(p.requires_grad for p in helper.parameters())
    node = {"_target_": "dp.training.tasks.classifying.Classifying", "_partial_": True}
    with pytest.raises(ValueError, match=r"unknown key training\.task\.helper"):
        trained.check_recipe({**config, "training": {**config["training"], "task": node}})


PURIFIER = """
from torch import nn
import torch.nn.functional as F
from dp.purifiers.module import PurifierModule
from dp.training.outputs import write_table
from dp.training.task import Task


class Filter(PurifierModule):
    def __init__(self, net, std: float):
        super().__init__()
        self.net, self.std = net, std

    def forward(self, x, denoiser, classifier, rng, *, on_step=None):
        return self.evaluate(self.net, x + self.std * rng.randn_like(x)).clamp(0, 1)


class Wiener(Task):
    def __init__(self, purifier, data, *, teacher):
        self.purifier, self.net, self.data, self.teacher = purifier, purifier.net, data, teacher

    def draw(self, b, generator):
        x = self.data.x[:b]
        return x, x + self.purifier.std * x.new_empty(x.shape).normal_(generator=generator)

    def loss(self, x, noisy):
        return ((self.net(noisy) - x) ** 2).mean()

    def judge(self, test, folder, seed):
        write_table(folder / "judge.csv", ("kernel", "sum"), [("all", self.net.weight.sum().item())])
        assert not self.net.training
        assert self.teacher is not None
        return {"weight": self.net.weight.flatten()[0].item()}
"""


def test_the_network_of_a_purifier_is_trained(tmp_path, monkeypatch, capsys):
    """A purifier outside the tree: the file has the network alone, and the judge sees its numbers.
    One weight against noise of the images' own power: the least squares solution is |x|^2 / (|x|^2 + std^2).
    """
    (tmp_path / "mine" / "purifier").mkdir(parents=True)
    (tmp_path / "mine" / "training").mkdir()
    (tmp_path / "one_weight.py").write_text(PURIFIER)
    net = "{_target_: torch.nn.Conv2d, in_channels: 1, out_channels: 1, kernel_size: 1, bias: false}"
    loaded = f"net: {{_target_: dp.weights.checkpoints.load, file: mine.safetensors, net: {net}}}"
    purifier = f"# A filter.\n_target_: one_weight.Filter\nstd: 0.3\n{loaded}\n"
    (tmp_path / "mine" / "purifier" / "wiener.yaml").write_text(purifier)
    recipe = yaml.safe_load((CONF / "training" / "digits_classifier.yaml").read_text())["training"]
    recipe["task"] = {"_target_": "one_weight.Wiener", "_partial_": True}
    recipe["optimizer"] = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5}
    recipe |= {"embedded": False, "others": {"teacher": "denoiser/digits"}}
    text = "# @package _global_\n" + yaml.safe_dump({"device": "cpu", "training": recipe})
    (tmp_path / "mine" / "training" / "digits_wiener.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "cache"))
    words = ["model=purifier", "purifier=wiener", f"results={tmp_path}", f"--config-dir={tmp_path / 'mine'}"]
    small = ["training.test_images=8", "training.steps=200", "training.batch=256"]
    assert train.main([*words, *small]) == 0, capsys.readouterr().err
    (summary,) = tmp_path.glob("train-digits-purifier-*/summary.json")
    found = json.loads(summary.read_text())
    (weight,) = load_file(tmp_path / "cache" / "mine.safetensors").values()
    power = digits_train().x[:256].square().mean().item()
    assert weight.item() == found["weight"] == pytest.approx(power / (power + 0.09), abs=0.01)
    assert found["config"]["others"]["teacher"]["_target_"].endswith("EDM")
    assert (summary.parent / "judge.csv").read_text() == f"kernel,sum\nall,{weight.item():.6g}\n"
