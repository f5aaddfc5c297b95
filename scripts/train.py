"""Train the network that a configuration names and write it as safetensors where the configuration finds it.

usage: python scripts/train.py [dataset=digits|cifar10|svhn] model=denoiser|classifier [out=FILE.safetensors] [key=value
       ...]
       torchrun --nproc_per_node=4 scripts/train.py ...     the same gradients from several processes

  dataset=svhn model=denoiser              SVHN's DDPM into the cache folder (DP_CACHE)
  dataset=svhn model=classifier            its WRN-28-10
  dataset=cifar10 model=denoiser out=my-edm.safetensors
  dataset=digits model=denoiser            the embedded file in dp/assets/, bit for bit

conf/training/<dataset>_<model>.yaml holds the hyperparameters; change them as training.steps=..., training.batch=...,
training.optimizer.lr=..., or choose another file with training=<name>. The network is that of classifier=... or
denoiser=..., the loss follows from the denoiser's adapter: EDM or eps. device=auto|cpu|cuda; tracking=wandb mirrors the
curve; overwrite=true starts again.

results/runs/train-<key>/ keeps the state (every training.save_every steps), loss.csv, loss.png, samples.png and
summary.json. The same command goes on where it was stopped, whatever stopped it; on a CPU it ends with the same bits.
Exit codes: 0 done, 2 a mistake in the command, 130 interrupted.
"""

import functools
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import matplotlib as mpl
import torch
import torch.distributed as dist
from hydra.utils import instantiate
from rich.progress import Progress, TimeRemainingColumn

mpl.use("Agg")
import matplotlib.pyplot as plt
from told import told

import run
from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import to_01
from dp.files.cache import ASSETS, cache_folder
from dp.output import record
from dp.output.report import clock
from dp.output.tracking import NoTracking, Tracker
from dp.runs.validate import NOT_PASSED, check_call
from dp.training import tasks
from dp.training.distributed import world
from dp.training.trainer import Training, keep

OWN = (
    "data",
    "files",
    "task",
    "precision",
    "threads",
    "embedded",
    "test_images",
    "samples",
)  # of the training yaml, read here
TIMES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)  # at which a denoiser is judged


def composed(args: list[str]) -> tuple[dict, str, Path | None]:
    """The configuration of this command, `model` and `out`."""
    given = dict(a.split("=", 1) for a in args if a.startswith(("model=", "out=", "dataset=", "training=")))
    model, out = given.get("model"), given.get("out")
    if model not in ("denoiser", "classifier"):
        raise ValueError(
            f"need model=denoiser or model=classifier, got {f'model={model}' if model else 'none'}: --help"
        )
    if out is not None and not out.endswith(".safetensors"):
        raise ValueError(f"need out=FILE.safetensors, got out={out}: name a file")
    recipe = given.get("training", f"{given.get('dataset', 'digits')}_{model}")
    rest = [a for a in args if not a.startswith(("model=", "out=", "training="))]
    return run.composed(f"+training={recipe}", *rest), model, Path(out) if out else None


def key_of(config: dict, model: str) -> str:
    """Same network, data and recipe, same key."""
    node = {k: v for k, v in config[model].items() if k != "net"}
    recipe = {k: v for k, v in config["training"].items() if k not in ("log_every", "save_every", "samples", "files")}
    kept = [config["dataset"]["name"], model, node, config[model]["net"]["net"], recipe]
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]
    return f"train-{config['dataset']['name']}-{model}-{digest}"


def destination(config: dict, model: str, out: Path | None) -> Path:
    """Where the weights go: `out`, dp/assets/ for the embedded ones, or the cache folder."""
    file = config[model]["net"]["file"]
    if out is not None:
        return out
    if not file.endswith(".safetensors"):
        raise ValueError(
            f"need out=FILE.safetensors, got none, and {model}.net.file={file} is another format: add out="
        )
    return (ASSETS if config["training"]["embedded"] else cache_folder()) / file


def unlike(config: dict, model: str, path: Path, sha256: str) -> str:
    """The options with which the configuration finds these weights; none where it does already."""
    node, words = config[model]["net"], []
    name = path.name if path.parent.absolute() in (ASSETS, cache_folder().absolute()) else str(path.absolute())
    if name != node["file"]:
        words.append(f"{model}.net.file={name}")
    if node.get("sha256") not in (None, sha256):
        words.append(f"{model}.net.sha256={sha256}")
    return " ".join(words)


def adapter_of(config: dict, model: str, device: str) -> Denoiser | Classifier:
    """The configuration's adapter around a fresh network, seeded."""
    node = {k: v for k, v in config[model].items() if k not in NOT_PASSED}
    if not isinstance(node.get("net"), dict) or not node["net"].get("net"):
        raise ValueError(f"need a network under {model}.net.net, got none: choose {model}=... that names one")
    check_call({model: {"net": {"net": node["net"]["net"]}}})
    torch.manual_seed(config["training"]["seed"])
    net = instantiate(node.pop("net")["net"], _convert_="all")
    if isinstance(net, functools.partial):
        net = net()
    precision = config["training"]["precision"]
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"need training.precision float32 or bfloat16, got {precision}")
    dtype = getattr(torch, precision) if device.startswith("cuda") else torch.float32
    adapter = instantiate({**node, "_partial_": True}, _convert_="all")(net, dtype=dtype)
    return adapter.to(device, memory_format=torch.channels_last) if device.startswith("cuda") else adapter


def training_of(config: dict, adapter: Denoiser | Classifier) -> Training:
    """The recipe around the network, at its first step."""
    recipe = config["training"]
    loop = {k: v for k, v in recipe.items() if k not in OWN}
    check_call({"training": loop})
    check_call({k: recipe[k] for k in ("data", "task")}, "training")
    task = instantiate(recipe["task"], _convert_="all")(adapter, instantiate(recipe["data"]))
    return instantiate(loop, _convert_="all")(task)


class Display:
    """Progress and time to go: a bar on a terminal, a line every ten seconds elsewhere; figures to the tracker."""

    def __init__(self, training: Training, tracker: Tracker):
        self.tracker, self.first, self.began = tracker, training.step, time.monotonic()
        self.said, self.logged = self.began, len(training.history)
        columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn(compact=True))
        self.bar = Progress(*columns, console=run.console, transient=True) if run.console.is_terminal else None
        self.task = self.bar.add_task("training", total=training.steps) if self.bar else None

    def __call__(self, training: Training) -> None:
        if len(training.history) > self.logged:
            self.logged = len(training.history)
            self.tracker.log({"step": training.step, "loss": training.history[-1][1]})
        loss = f", loss {training.history[-1][1]:.4f}" if training.history else ""
        if self.bar and self.task is not None:
            self.bar.start()
            self.bar.update(self.task, completed=training.step, description=f"step {training.step}{loss}")
        elif time.monotonic() - self.said > 10:
            self.said = time.monotonic()
            left = (self.said - self.began) / (training.step - self.first) * (training.steps - training.step)
            done = 100 * training.step / training.steps
            run.console.print(f"{done:3.0f} %, {clock(left)} to go: step {training.step}/{training.steps}{loss}")

    def stop(self) -> None:
        if self.bar:
            self.bar.stop()


def curve(training: Training, folder: Path) -> None:
    """loss.csv and loss.png: the mean loss of each stretch of training.log_every steps."""
    lines = "".join(f"{step},{loss:.8g}\n" for step, loss in training.history)
    record.write_atomic(folder / "loss.csv", f"step,loss\n{lines}".encode())
    if training.step == training.steps:
        fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
        ax.plot(*zip(*training.history, strict=True), color="#0b6e99", lw=1)
        ax.set(xlabel="step", ylabel=f"mean loss of {training.log_every} steps", yscale="log")
        ax.spines[["top", "right"]].set_visible(False)
        fig.savefig(folder / "loss.png", dpi=120)
        plt.close(fig)


def judge(config: dict, model: str, adapter: Denoiser | Classifier, training: Training, folder: Path) -> dict:
    """Figures on test images, and samples.png."""
    recipe = config["training"]
    test = instantiate({**config["dataset"]["loader"], "images": recipe["test_images"]}, _convert_="all")
    adapter.net.load_state_dict(training.result.state_dict())
    adapter.eval().requires_grad_(False)
    adapter.dtype = torch.float32
    if isinstance(adapter, Classifier):
        percent = tasks.accuracy(adapter, test)
        run.console.print(f"classifier: {percent:.1f} % of {len(test.x)} test images")
        return {"accuracy": percent}
    task = training.task
    assert isinstance(task, tasks.Denoising)
    found = tasks.held_out(task, test, TIMES, recipe["seed"])
    words = ", ".join(f"{loss:.3f} at {sigma:.3g}" for sigma, loss in found.items())
    run.console.print(f"denoiser: loss on {len(test.x)} test images by sigma: {words}")
    if recipe["samples"]:
        x = to_01(tasks.samples(adapter, (64, *test.x.shape[1:]), **recipe["samples"], seed=recipe["seed"]))
        plt.imsave(folder / "samples.png", tasks.grid(x, columns=8, times=3).numpy())
    return {f"loss/sigma={sigma:.4g}": loss for sigma, loss in found.items()}


def start(config: dict) -> str:
    """Join the other processes that torchrun started, if it did; the device of this one."""
    device = run.device_of(config)
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
    """Go on from the kept state, or from the first step; the tracker."""
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
    run.console.print(key)
    run.console.print(f"{net} ({parameters:.2f} M parameters), {training.steps} steps of {training.batch} images {on}")
    tracker: Tracker = instantiate(config["tracking"], _convert_="all")(key, folder, config)
    display = Display(training, tracker)
    try:
        training.run(state, display, lambda now: curve(now, folder))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted at step {training.step}: the same command goes on") from None
    finally:
        display.stop()
    return tracker


def main(args: list[str]) -> None:
    config, model, out = composed(args)
    out, key = destination(config, model, out), key_of(config, model)
    folder, device = Path(config["results"]) / key, start(config)
    if world()[0] == 0:
        run.prepare({name: config[name] for name in ("dataset", "training")})
    if world()[1] > 1:
        dist.barrier()
    adapter = adapter_of(config, model, device)
    training = training_of(config, adapter)
    tracker = learn(training, config, key, folder)
    if world()[0] == 0:
        curve(training, folder)
        found = keep(training.result, out, config["training"]["embedded"])
        run.console.print(f"{out}: {out.stat().st_size / 1e3:.0f} kB, sha256 {found}")
        if words := unlike(config, model, out, found):
            run.console.print(f"to use it: {words}")
        figures = judge(config, model, adapter, training, folder)
        facts = {"sha256": found, "seconds": training.seconds, "processes": world()[1], "config": config}
        summary = {**figures, **facts, **record.provenance()}
        record.write_atomic(folder / "summary.json", json.dumps(summary, indent=1).encode())
        tracker.finish(summary)
        run.console.print(f"{clock(training.seconds)} of training; {folder}")
    if world()[1] > 1:
        dist.destroy_process_group()


def cli(args: list[str]) -> int:
    """0 done, 2 a user's error in one line, 130 interrupted."""
    if not args or {"-h", "--help"} & set(args):
        print(__doc__)
        return 0

    def trained() -> int:
        main(args)
        return 0

    return told(trained, "interrupted before the first step; the same command starts again")


if __name__ == "__main__":
    sys.exit(cli(sys.argv[1:]))
