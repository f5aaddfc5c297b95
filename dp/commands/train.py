"""dp train: train the network of a configuration, and write it as safetensors to the place where runs look for it.

usage: dp train [dataset=digits|cifar10|svhn] model=denoiser|classifier [out=FILE.safetensors] [KEY=VALUE ...]
       torchrun --nproc_per_node=4 -m dp train ...     the same gradients from several processes

  dataset=svhn model=denoiser              SVHN's DDPM into the cache folder (DP_CACHE)
  dataset=svhn model=classifier            its WRN-28-10
  dataset=cifar10 model=denoiser out=my-edm.safetensors
  dataset=digits model=denoiser            the embedded file in dp/assets/, bit for bit

conf/training/<dataset>_<model>.yaml holds the hyperparameters. Change them by training.steps=..., training.batch=...,
training.optimizer.lr=..., or choose another file by training=<name>. The network is that of classifier=... or
denoiser=...; the loss follows from the denoiser's adapter, EDM or eps. device=auto|cpu|cuda. tracking=wandb mirrors the
curve. overwrite=true starts again. --config-dir DIR adds a folder of yamls.

results/runs/train-<key>/ has the state (every training.save_every steps), loss.csv, loss.png, samples.png and
summary.json. The same command goes on where it stopped. On a CPU an interrupted training ends with the same bits.
Exit codes: 0 done, 2 a mistake in the command, 130 interrupted.
"""

import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import torch.distributed as dist
from rich.progress import Progress, TimeRemainingColumn

mpl.use("Agg")
import matplotlib.pyplot as plt

from dp.classifiers import Classifier
from dp.commands.options import parser
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import to_01
from dp.files.cache import ASSETS, cache_folder
from dp.output import record
from dp.output.console import console
from dp.output.report import clock
from dp.output.tracking import NoTracking, Tracker
from dp.runs import compose
from dp.runs.errors import DONE, command
from dp.runs.machine import device_of
from dp.runs.pipeline import fetch_missing
from dp.runs.validate import check_call
from dp.training import tasks
from dp.training.distributed import world
from dp.training.trainer import Training, keep

# Keys of the training yaml that this file reads. The other keys are arguments of the training loop.
OWN = ("data", "files", "task", "precision", "threads", "embedded", "test_images", "samples")
TIMES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)  # noise times at which a denoiser is evaluated
WORDS = ("model=", "out=", "training=")  # words of the command that are no overrides of the configuration


def composed(words: Sequence[str], config_dirs: Sequence[str] = ()) -> tuple[dict, str, Path | None]:
    """The configuration of a command, its `model` and its `out`. Raises ValueError for a wrong model or file name."""
    given = dict(w.split("=", 1) for w in words if w.startswith((*WORDS, "dataset=")))
    model, out = given.get("model"), given.get("out")
    if model not in ("denoiser", "classifier"):
        raise ValueError(
            f"need model=denoiser or model=classifier, got {f'model={model}' if model else 'none'}: --help"
        )
    if out is not None and not out.endswith(".safetensors"):
        raise ValueError(f"need out=FILE.safetensors, got out={out}: name a file")
    recipe = given.get("training", f"{given.get('dataset', 'digits')}_{model}")
    overrides = [f"+training={recipe}", *(w for w in words if not w.startswith(WORDS))]
    return compose.composed(*overrides, config_dirs=config_dirs), model, Path(out) if out else None


def key_of(config: dict, model: str) -> str:
    """The key of a training. Equal networks, data and recipes have equal keys."""
    node = {k: v for k, v in compose.arguments(config[model]).items() if k != "net"}
    recipe = {k: v for k, v in config["training"].items() if k not in ("log_every", "save_every", "samples", "files")}
    hashed = [config["dataset"]["name"], model, node, config[model]["net"]["net"], recipe]
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:10]
    return f"train-{config['dataset']['name']}-{model}-{digest}"


def destination(config: dict, model: str, out: Path | None) -> Path:
    """The file for the weights: `out` if given, else in dp/assets/ for embedded weights, else in the cache folder.

    Raises ValueError if the configuration names a file of another format and `out` is not given.
    """
    file = config[model]["net"]["file"]
    if out is not None:
        return out
    if not file.endswith(".safetensors"):
        raise ValueError(
            f"need out=FILE.safetensors, got none, and {model}.net.file={file} is another format: add out="
        )
    return (ASSETS if config["training"]["embedded"] else cache_folder()) / file


def unlike(config: dict, model: str, path: Path, sha256: str) -> str:
    """The overrides with which a run finds these weights, or "" if it finds them without."""
    node, words = config[model]["net"], []
    name = path.name if path.parent.absolute() in (ASSETS, cache_folder().absolute()) else str(path.absolute())
    if name != node["file"]:
        words.append(f"{model}.net.file={name}")
    if node.get("sha256") not in (None, sha256):
        words.append(f"{model}.net.sha256={sha256}")
    return " ".join(words)


def adapter_of(config: dict, model: str, device: str) -> Denoiser | Classifier:
    """The configuration's adapter around a new network with seeded weights. Raises ValueError for wrong settings."""
    node = compose.arguments(config[model])
    if not isinstance(node.get("net"), dict) or not node["net"].get("net"):
        raise ValueError(f"need a network under {model}.net.net, got none: choose {model}=... that names one")
    check_call(node["net"]["net"], f"{model}.net.net", config["plugins"]["modules"])
    torch.manual_seed(config["training"]["seed"])
    net = _make(config, node.pop("net")["net"])
    if isinstance(net, functools.partial):
        net = net()
    precision = config["training"]["precision"]
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"need training.precision float32 or bfloat16, got {precision}")
    dtype = getattr(torch, precision) if device.startswith("cuda") else torch.float32
    adapter = _make(config, {**node, "_partial_": True})(net, dtype=dtype)
    return adapter.to(device, memory_format=torch.channels_last) if device.startswith("cuda") else adapter


def training_of(config: dict, adapter: Denoiser | Classifier) -> Training:
    """The training of a network by the recipe, at its first step."""
    recipe = config["training"]
    loop = {k: v for k, v in recipe.items() if k not in OWN}
    check_call(loop, "training", config["plugins"]["modules"])
    check_call({k: recipe[k] for k in ("data", "task")}, "training", config["plugins"]["modules"])
    task = _make(config, recipe["task"])(adapter, _make(config, recipe["data"]))
    return _make(config, loop)(task)


def _make(config: dict, node: Any) -> Any:
    return compose.make(node, modules=config["plugins"]["modules"])


class Display:
    """The progress of a training, on the console and to a tracker. Call it with the training after every step."""

    def __init__(self, training: Training, tracker: Tracker):
        self.tracker, self.first, self.start_time = tracker, training.step, time.monotonic()
        self.last_line, self.logged = self.start_time, len(training.history)
        columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn(compact=True))
        self.bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self.task = self.bar.add_task("training", total=training.steps) if self.bar else None

    def __call__(self, training: Training) -> None:
        if len(training.history) > self.logged:
            self.logged = len(training.history)
            self.tracker.log({"step": training.step, "loss": training.history[-1][1]})
        loss = f", loss {training.history[-1][1]:.4f}" if training.history else ""
        if self.bar and self.task is not None:
            self.bar.start()
            self.bar.update(self.task, completed=training.step, description=f"step {training.step}{loss}")
        elif time.monotonic() - self.last_line > 10:
            self.last_line = time.monotonic()
            left = (self.last_line - self.start_time) / (training.step - self.first) * (training.steps - training.step)
            done = 100 * training.step / training.steps
            console.print(f"{done:3.0f} %, {clock(left)} to go: step {training.step}/{training.steps}{loss}")

    def stop(self) -> None:
        """Remove the bar."""
        if self.bar:
            self.bar.stop()


def curve(training: Training, folder: Path) -> None:
    """Write loss.csv, the mean loss of every training.log_every steps, and at the end loss.png."""
    lines = "".join(f"{step},{loss:.8g}\n" for step, loss in training.history)
    record.write_atomic(folder / "loss.csv", f"step,loss\n{lines}".encode())
    if training.step == training.steps:
        fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
        ax.plot(*zip(*training.history, strict=True), color="#0b6e99", lw=1)
        ax.set(xlabel="step", ylabel=f"mean loss of {training.log_every} steps", yscale="log")
        ax.spines[["top", "right"]].set_visible(False)
        fig.savefig(folder / "loss.png", dpi=120)
        plt.close(fig)


def evaluate(config: dict, model: str, adapter: Denoiser | Classifier, training: Training, folder: Path) -> dict:
    """Figures on test images. For a denoiser it also writes samples.png."""
    recipe = config["training"]
    test = _make(config, {**config["dataset"]["loader"], "images": recipe["test_images"]})
    adapter.net.load_state_dict(training.result.state_dict())
    adapter.eval().requires_grad_(False)
    adapter.dtype = torch.float32
    if isinstance(adapter, Classifier):
        percent = tasks.accuracy(adapter, test)
        console.print(f"classifier: {percent:.1f} % of {len(test.x)} test images")
        return {"accuracy": percent}
    task = training.task
    assert isinstance(task, tasks.Denoising)
    losses = tasks.held_out(task, test, TIMES, recipe["seed"])
    words = ", ".join(f"{loss:.3f} at {sigma:.3g}" for sigma, loss in losses.items())
    console.print(f"denoiser: loss on {len(test.x)} test images by sigma: {words}")
    if recipe["samples"]:
        x = to_01(tasks.samples(adapter, (64, *test.x.shape[1:]), **recipe["samples"], seed=recipe["seed"]))
        plt.imsave(folder / "samples.png", tasks.grid(x, columns=8, times=3).numpy())
    return {f"loss/sigma={sigma:.4g}": loss for sigma, loss in losses.items()}


def start(config: dict) -> str:
    """Join the other processes if torchrun started this one. Returns the device of this process."""
    device = device_of(config)
    if "LOCAL_RANK" in os.environ:
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    torch.backends.cudnn.benchmark = True
    if config["training"]["threads"] is not None:
        torch.set_num_threads(config["training"]["threads"])
    return device


def learn(training: Training, config: dict, key: str, folder: Path) -> Tracker:
    """Train from the saved state, or from the first step. Returns the tracker."""
    state = folder / "state.pt"
    if config["overwrite"] and world()[0] == 0:
        state.unlink(missing_ok=True)
    if world()[1] > 1:
        dist.barrier()
    if state.exists():
        training.restore(state)
    if world()[0] > 0:
        training.run(state, lambda _: None, lambda _: None)
        return NoTracking(key, folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    net, parameters = type(training.net).__name__, sum(p.numel() for p in training.net.parameters()) / 1e6
    on = f"on {next(training.net.parameters()).device}" + (f" x {world()[1]}" if world()[1] > 1 else "")
    on += f", from step {training.step}" if training.step else ""
    console.print(key)
    console.print(f"{net} ({parameters:.2f} M parameters), {training.steps} steps of {training.batch} images {on}")
    tracker: Tracker = _make(config, config["tracking"])(key, folder, config)
    display = Display(training, tracker)
    try:
        training.run(state, display, lambda now: curve(now, folder))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted at step {training.step}: the same command goes on") from None
    finally:
        display.stop()
    return tracker


def train(words: Sequence[str], config_dirs: Sequence[str] = ()) -> int:
    """Train, write the weights, evaluate them, and write the summary."""
    config, model, out = composed(words, config_dirs)
    out, key = destination(config, model, out), key_of(config, model)
    folder, device = Path(config["results"]) / key, start(config)
    if world()[0] == 0:
        fetch_missing({name: config[name] for name in ("dataset", "training")})
    if world()[1] > 1:
        dist.barrier()
    adapter = adapter_of(config, model, device)
    training = training_of(config, adapter)
    tracker = learn(training, config, key, folder)
    if world()[0] == 0:
        curve(training, folder)
        sha256 = keep(training.result, out, config["training"]["embedded"])
        console.print(f"{out}: {out.stat().st_size / 1e3:.0f} kB, sha256 {sha256}")
        if changes := unlike(config, model, out, sha256):
            console.print(f"to use it: {changes}")
        figures = evaluate(config, model, adapter, training, folder)
        facts = {"sha256": sha256, "seconds": training.seconds, "processes": world()[1], "config": config}
        summary = {**figures, **facts, **record.provenance()}
        record.write_atomic(folder / record.SUMMARY, json.dumps(summary, indent=1).encode())
        tracker.finish(summary)
        console.print(f"{clock(training.seconds)} of training; {folder}")
    if world()[1] > 1:
        dist.destroy_process_group()
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if the training is done, 2 after a user's error, 130 if interrupted.

    Without words it prints the help.
    """
    given = sys.argv[1:] if argv is None else argv
    if not given or {"-h", "--help"} & set(given):
        print(__doc__)
        return DONE
    args = parser(None, "the configuration").parse_intermixed_args(given)
    return command(
        lambda: train(args.overrides, args.config_dirs),
        "interrupted before the first step; the same command starts again",
    )
