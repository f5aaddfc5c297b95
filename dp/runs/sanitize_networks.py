"""The networks of a sanitizing: trained by recipes, saved when they are done, and asked in calls of one width."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from dp.classifiers import Classifier
from dp.output import record
from dp.output.console import console
from dp.output.progress import Bar
from dp.output.run_files import Timing
from dp.rng import Streams
from dp.runs.build import network
from dp.runs.sanitized import Job, make
from dp.runs.trained import adapter_of, looped
from dp.subset import Subset
from dp.training.trainer import Training, keep
from dp.weights.checkpoints import fit

TIMES = "timing-1.jsonl"


@dataclass
class Workshop:
    """Where networks are trained: a job on a device."""

    job: Job
    device: str

    def training(self, name: str, data: Subset, group: str, start: Any = None) -> tuple[Any, Training]:
        """A new adapter of `group` and its training on `data` by the recipe `name`, at the first step.

        `start`: an adapter from whose weights it begins, else they are seeded.
        """
        recipe = self.job.recipes[name]
        config = {**self.job.config, "training": recipe}
        adapter: Any = adapter_of(config, group, self.device)
        if start is not None:
            adapter.net.load_state_dict(start.net.state_dict())
        task = make(config, recipe["task"])(adapter, data)
        return adapter, looped(config, task, self.device)

    def trained(self, file: str, recipe: str, data: Subset, group: str = "classifier", start: Any = None) -> Any:
        """The trained adapter. It is read if its file is there, else it is trained now, or the training goes on.

        `file`: the name of its files. The state of the training is saved as its recipe says.
        """
        weights, state = self.job.folder / f"{file}.safetensors", self.job.folder / f"{file}.pt"
        adapter, training = self.training(recipe, data, group, start)
        if weights.exists():
            fit(adapter.net, load_file(weights), weights.name)
        else:
            if state.exists():
                training.restore(state)
            began = training.seconds
            with Bar(console, training.steps) as bar, naming(recipe):
                first = training.step
                training.run(
                    state, lambda now: bar(now.step, f"{file}: step {now.step}/{now.steps}", first), lambda _: None
                )
            adapter.net.load_state_dict(training.result.state_dict())
            keep(adapter.net, weights, half=False)
            note(self.job.folder, training.seconds - began)
            state.unlink(missing_ok=True)
        return adapter.eval().requires_grad_(False)

    def probed(self, name: str, data: Subset, group: str) -> tuple[Any, float]:
        """A new adapter in evaluation mode, and the time of one step of its training, measured."""
        adapter, training = self.training(name, data, group)
        if group == "classifier":
            check_classifier(adapter, data, self.device)
        with naming(name):
            if training.steps > 1:
                training.advance()  # the first call also loads what the next ones have
            began = time.perf_counter()
            training.advance()
        return adapter.eval().requires_grad_(False), time.perf_counter() - began


@contextmanager
def naming(recipe: str) -> Iterator[None]:
    """Puts the key of a recipe before the message of a ValueError of its training."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"sanitizer.{recipe}: {error}") from error


def check_classifier(classifier: Classifier, data: Subset, device: str) -> None:
    """Raises ValueError for a classifier without attention features, and for one with fewer logits than labels."""
    x, labels = data.x[:2].to(device), int(data.y.max()) + 1
    with torch.no_grad():
        classifier.features(x)
        logits = classifier(x).shape[1]
    if logits < labels:
        raise ValueError(f"need a logit for every label, got {logits} logits and labels up to {labels - 1}")


class Cost(NamedTuple):
    """What a sanitizing costs: network evaluations of an image, and seconds of the first pass and of the trainings."""

    nfe: int
    rounds: float
    trainings: float


def cost_of(shop: Workshop, data: Subset) -> Cost:
    """The cost of a sanitizing, measured by one call of each network and one step of each training.

    Raises ValueError for networks that do not take the images or have too few classes.
    """
    sanitizer, recipes, device = shop.job.sanitizer, shop.job.recipes, shop.device
    shape = "x".join(map(str, data.x.shape[1:]))
    try:
        classifier, step = shop.probed("classifier", data, "classifier")
        trainings = step * (3 * recipes["classifier"]["steps"] + recipes["finetuning"]["steps"])
        if shop.job.trains_denoiser:
            denoiser, step = shop.probed("denoiser", data, "denoiser")
            trainings += step * recipes["denoiser"]["steps"]
        else:
            denoiser = network(shop.job.config, "denoiser", device)
        x = data.x[next(chunks(len(data.x), sanitizer.batch))[1]].to(device, memory_format=torch.channels_last)
        with torch.no_grad():
            seeing = seconds(lambda: classifier(x))
            short, rng = replace(sanitizer.rounds, coarse=1, last=1, count=1), Streams(range(len(x)), 0, "probe")
            short.states(x[:1], denoiser, rng.select([0]))
            denoising = seconds(lambda: short.states(x, denoiser, rng)) / short.nfe(denoiser.sigma)
    except RuntimeError as error:
        raise ValueError(f"need networks for images of {shape}, got one that says: {error}") from error
    nfe = sanitizer.rounds.nfe(denoiser.sigma)
    chunk = nfe * denoising + (1 + sanitizer.rounds.kept) * seeing
    return Cost(nfe, chunk * math.ceil(len(data.x) / sanitizer.batch), trainings)


def seconds(call: Callable[[], object]) -> float:
    """The time of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def note(folder: Path, seconds: float) -> None:
    """Add to the time that a sanitizing has taken."""
    record.drop_torn_lines(folder / TIMES, Timing)
    record.append(folder / TIMES, [{"seconds": seconds}])


def seconds_of(folder: Path) -> float:
    """The time that a sanitizing has taken."""
    lines = (folder / TIMES).read_text().split("\n")[:-1] if (folder / TIMES).exists() else []
    return sum(json.loads(line)["seconds"] for line in lines)


def chunks(total: int, width: int) -> Iterator[tuple[int, Tensor]]:
    """The number of every chunk and its places (width,). The last chunk is padded by the last place."""
    for k, first in enumerate(range(0, total, width)):
        yield k, torch.arange(first, first + width).clamp(max=total - 1)


@torch.no_grad()
def labels_of(
    classifier: Classifier, x: Tensor, width: int, device: str, on_call: Callable[[], object] = tuple
) -> Tensor:
    """The classifier's labels (N,) of images x (N,C,H,W) in [0,1], in calls of `width` images.

    The width of a call changes the last bit of a result, so the last one is padded.
    """
    parts = []
    for _, places in chunks(len(x), width):
        batch = x[places].to(device, memory_format=torch.channels_last)
        parts.append(classifier(batch).argmax(1).cpu())
        on_call()
    return torch.cat(parts)[: len(x)] if parts else torch.empty(0, dtype=torch.long)
