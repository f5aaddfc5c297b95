"""dp train: train the network of a configuration, and write it as safetensors to the place where runs look for it.

usage: dp train [dataset=NAME] model=denoiser|classifier|purifier [out=FILE.safetensors] [KEY=VALUE ...]
       torchrun --nproc_per_node=4 -m dp train ...     the same gradients from several processes

  dataset=svhn model=denoiser              SVHN's DDPM into the cache folder (DP_CACHE)
  dataset=svhn model=classifier            its WRN-28-10
  dataset=cifar10 model=denoiser out=my-edm.safetensors
  dataset=digits model=denoiser            the embedded file in dp/assets/, bit for bit
  model=denoiser denoiser=digits_conditional       another network, by the recipe of its name
  model=purifier purifier=NAME             the network of a purifier that has one of its own

The recipe is conf/training/<name>.yaml: training=<name> if given, else the option that is trained (digits_conditional)
or <dataset>_<option> if there is such a recipe, else <dataset>_<model>. It holds the hyperparameters. Change them by
training.steps=..., training.batch=..., training.optimizer.lr=.... The network is that of classifier=..., denoiser=...
or purifier=...; the loss is that of the recipe's task. A recipe may begin from given weights (training.start.file=...)
and use frozen networks (training.others.teacher=denoiser/digits). device=auto|cpu|cuda. tracking=wandb mirrors the
curve. overwrite=true starts again. --config-dir DIR adds a folder of yamls.

results/runs/train-<key>/ has the state (every training.save_every steps), loss.csv, loss.png, the task's table
judge.csv with its pictures, and summary.json. The same command goes on where it stopped. On a CPU an interrupted
training ends with the same bits. A state that other code made is refused.
Exit codes: 0 done, 2 a mistake in the command, 130 interrupted.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from dp.commands.options import parser
from dp.output import record
from dp.output.console import console
from dp.output.report import clock
from dp.output.tracked import Content, scalars
from dp.output.tracking import NoTracking, Tracker
from dp.runs import compose
from dp.runs.errors import DONE, command
from dp.runs.machine import device_of
from dp.runs.pipeline import fetch_missing
from dp.runs.trained import adapter_of, composed, destination, judged, key_of, tested, training_of, unlike
from dp.training.display import Display, curve
from dp.training.distributed import world
from dp.training.trainer import Training, keep


def start(config: dict) -> str:
    """Join the other processes if torchrun started this one. Returns the device of this process."""
    device = device_of(config)
    if "LOCAL_RANK" in os.environ:
        if device.startswith("cuda"):
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
    made = compose.make(config["tracking"], modules=config["plugins"]["modules"])
    tracker: Tracker = made(key, folder, config)
    display = Display(training, tracker)
    try:
        training.run(state, display, lambda now: curve(now, folder))
    except KeyboardInterrupt:
        goes = f"goes on from step {training.saved}" if training.saved else "begins again"
        raise KeyboardInterrupt(f"interrupted at step {training.step}: the same command {goes}") from None
    finally:
        display.stop()
    return tracker


def train(words: Sequence[str], config_dirs: Sequence[str] = ()) -> int:
    """Train, write the weights, evaluate them, and write the summary."""
    config, model, out = composed(words, config_dirs)
    out, device = destination(config, model, out), start(config)
    if world()[0] == 0:
        fetch_missing({name: config[name] for name in ("dataset", "training", "others")})
    if world()[1] > 1:
        dist.barrier()
    test, key = tested(config), key_of(config, model)
    folder = Path(config["results"]) / key
    adapter = adapter_of(config, model, device)
    training = training_of(config, adapter, device)
    tracker = learn(training, config, key, folder)
    if world()[0] == 0:
        curve(training, folder)
        sha256 = keep(training.result, out, config["training"]["embedded"])
        console.print(f"{out}: {out.stat().st_size / 1e3:.0f} kB, sha256 {sha256}")
        if changes := unlike(config, model, out, sha256):
            console.print(f"to use it: {changes}")
        figures = judged(config, adapter, training, test, folder)
        facts = {"sha256": sha256, "seconds": training.seconds, "processes": world()[1], "config": config}
        summary = {**figures, **facts, **record.provenance()}
        record.write_atomic(folder / record.SUMMARY, json.dumps(summary, indent=1).encode())
        tracker.finish(Content(scalars(summary)))
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
