"""A certification from its command to its summary: configure, build, certify what is left, summarize."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dp.certification import rows
from dp.certification.curve import figures
from dp.certification.smoothing import SELECT, Smoothing
from dp.classifiers import Classifier, RandomizedClassifier
from dp.defense.defended import Defended
from dp.diffusion.denoisers import Denoiser, Gaussian
from dp.output import record
from dp.output.console import console
from dp.output.progress import Bar
from dp.output.report import clock
from dp.output.row_table import count_of
from dp.output.run_files import Timing
from dp.precision import tensor_cores
from dp.purifiers import none
from dp.repeatable import set_repeatable
from dp.rng import Streams
from dp.runs import compose, job_files
from dp.runs.build import check_images, in_precision, network
from dp.runs.errors import unknown_option
from dp.runs.help import options
from dp.runs.keys import digest_of
from dp.runs.machine import device_of, shard_of
from dp.runs.pipeline import fetch_missing
from dp.runs.sources import sources_hash
from dp.runs.targets import target_of
from dp.runs.validate import check_call, check_finite, check_keys, check_kinds, check_setup
from dp.runs.words import words_of
from dp.subset import Subset, in_own_types

GROUP, DEFAULT = "certificate", "one_shot"
FOLDER, ARCHIVE = Path("results/certified"), Path("results/measured/certified")
NETWORKS = ("dataset", "classifier", "denoiser")
TAKES = (*NETWORKS, GROUP, "results", "device", "dtype", "overwrite", "shard")  # what a command may set
# A configuration has these groups too, and nothing reads them here. The values are for any dataset.
REST = ("purifier=diffpure", "purifier.t=0.2", "purifier.steps=1", "attack=none")
FORMAT = 1  # of summary.json


@dataclass
class Job:
    """A certification. `config`: what can change its rows, and how it is done, as plain data."""

    config: dict
    smoothing: Smoothing
    folder: Path

    @cached_property
    def code(self) -> str:
        """The hash of the code, the plug-ins and the weights."""
        return sources_hash(self.config)


class Networks(NamedTuple):
    """What a certification works on. `denoiser`: None for the bare classifier. `evaluations`: of one noised image.

    `tf32`: multiply in TF32, on a GPU.
    """

    subset: Subset
    denoiser: Denoiser | None
    classifier: Classifier
    device: str
    evaluations: int
    seconds: float  # of one call of the base classifier
    tf32: bool


def configured(words: Sequence[str], config_dirs: Sequence[str] = ()) -> Job:
    """The certification of a command. Raises ValueError for words and values that do not fit."""
    config, name = composed(words, config_dirs)
    smoothing: Smoothing = _make(config, config[GROUP])
    if not smoothing.bare and "_target_" not in config["denoiser"]:
        raise ValueError(f"need a denoiser for certificate={name}, got none: set denoiser=NAME, or certificate=none")
    check_classifier(config)
    loader = config["dataset"]["loader"] | {"images": smoothing.images}
    loader |= {} if smoothing.every is None else {"every": smoothing.every}
    check_call(compose.arguments(loader), GROUP, config["plugins"]["modules"])
    dataset = {key: config["dataset"][key] for key in ("name", "files") if key in config["dataset"]}
    groups = ("classifier", GROUP) if smoothing.bare else ("classifier", "denoiser", GROUP)
    identity = {"dataset": dataset | {"loader": loader}, **{group: config[group] for group in groups}}
    identity["dtype"] = config["dtype"]
    digest = digest_of(identity)
    choices = {group: config["choices"][group] for group in ("dataset", *groups[:-1])} | {GROUP: name}
    how = {key: config[key] for key in ("device", "shard", "overwrite", "plugins")}
    key = f"{choices['dataset']}-{name}-{smoothing.sigma:g}-{smoothing.n}-{digest}".replace("/", "_")
    return Job({**identity, **how, "choices": choices}, smoothing, Path(config["results"]) / key)


def composed(words: Sequence[str], config_dirs: Sequence[str]) -> tuple[dict, str]:
    """The checked configuration of a command, and the name of its certificate. Raises ValueError for wrong words."""
    chosen = [word for word in words if word.partition("=")[0] == GROUP]
    rest, name = [word for word in words if word not in chosen], chosen[-1].partition("=")[2] if chosen else DEFAULT
    known = options(GROUP, config_dirs)
    if name not in known:
        raise ValueError(unknown_option(GROUP, name, [*known]))
    for key, word in words_of(rest).items():
        if key.partition(".")[0] not in TAKES:
            raise ValueError(f"need {', '.join(TAKES)}, got {word}: a certification has no purifier and no attack")
    given = (*REST, f"+{GROUP}={name}", f"results={FOLDER}", *rest)
    setup = compose.setup(*given, config_dirs=config_dirs)
    config = setup.config
    check_setup(setup._replace(config={key: value for key, value in config.items() if key != GROUP}))
    same = [f"{group}={config['choices'][group]}" for group in NETWORKS]
    default = compose.composed(*REST, f"+{GROUP}={name}", *same, config_dirs=config_dirs)
    check_keys({GROUP: config[GROUP]}, {GROUP: default[GROUP]})
    check_kinds({GROUP: config[GROUP]}, {GROUP: default[GROUP]})
    check_finite(config[GROUP], GROUP)
    check_call(compose.arguments(config[GROUP]), GROUP, config["plugins"]["modules"])
    for line in setup.notes:
        console.print(line)
    return config, name


def check_classifier(config: dict) -> None:
    """Raises ValueError for a classifier that draws noise: the base classifiers ask theirs without random streams."""
    target = target_of(config["classifier"]["_target_"], config["plugins"]["modules"], "classifier")
    if isinstance(target, type) and issubclass(target, RandomizedClassifier):
        name = config["choices"]["classifier"]
        raise ValueError(f"need a classifier without noise for a certificate, got classifier={name}: choose another")


def _make(config: dict, node: Any) -> Any:
    return compose.make(node, modules=config["plugins"]["modules"])


def check_early(job: Job) -> None:
    """Raises ValueError for settings that dp's own base classifiers refuse, before anything is fetched."""
    if str(job.config[GROUP]["base"]["_target_"]).startswith("dp."):
        x, rng = torch.full((1, 3, 8, 8), 0.5), Streams([0], 0, "dry")
        job.smoothing.base(x, job.smoothing.sigma, Gaussian(), partial(torch.flatten, start_dim=1), rng)


def build(job: Job) -> Networks:
    """The images and networks, at the size that the denoiser needs. One call of the base classifier is timed."""
    config, smoothing, device = job.config, job.smoothing, device_of(job.config)
    torch.set_num_threads(1)  # the last bits of a sum depend on it
    set_repeatable(device)
    denoiser: Denoiser | None = None if smoothing.bare else network(config, "denoiser", device)
    classifier: Classifier = network(config, "classifier", device)
    subset = in_own_types(_make(config, config["dataset"]["loader"]))
    model = in_precision(Defended(none.purify, denoiser, classifier), config["dtype"])
    check_images(model, subset, device)

    def predict(noised: Tensor, rng: Streams) -> Tensor:
        with tensor_cores(model.tf32):
            return smoothing.base(noised, smoothing.sigma, denoiser, classifier, rng)

    x, rng = sized(subset.x[:1], denoiser)[0].to(device), Streams(subset.ids[:1], smoothing.seed, SELECT)
    smoothing.call(predict, x, rng, 0)  # the first call also loads what the next ones have
    before, began = 0 if denoiser is None else denoiser.nfe, time.perf_counter()
    smoothing.call(predict, x, rng, 0)
    seconds = time.perf_counter() - began
    evaluations = 1 if denoiser is None else denoiser.nfe - before
    return Networks(subset, denoiser, classifier, device, evaluations, seconds, model.tf32)


def sized(x: Tensor, denoiser: Denoiser | None) -> Tensor:
    """Images (B,C,H,W) at the denoiser's own size, if it has one: the noise is added at this size."""
    # Differs: resized from the dataset's crop (deviation 103: size of ImageNet's images).
    size = None if denoiser is None else denoiser.size
    if size is None or x.shape[2:] == (size, size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def announcement(job: Job, networks: Networks) -> list[str]:
    """The lines that a certification prints before it starts: what it does, and what it costs."""
    smoothing, (part, parts), ids = job.smoothing, shard_of(job.config), networks.subset.ids.tolist()
    own, one, done = ids[part - 1 :: parts], networks.subset.x[:1], rows.read_all(job.folder)
    left = sum(i not in done for i in own)
    calls, shape = left * smoothing.calls, sized(one, networks.denoiser).shape[1:]
    work = calls * smoothing.batch * networks.evaluations
    images = f"{len(own)} of {count_of(len(ids), 'image')}" if parts > 1 else count_of(len(ids), "image")
    resized = f", resized to {'x'.join(map(str, shape))}: radii hold at this size" if shape != one.shape[1:] else ""
    per_sample = count_of(networks.evaluations, "network evaluation")
    return [
        job.folder.name,
        f"{job.config['choices'][GROUP]}: sigma {smoothing.sigma:g}, {smoothing.n0} samples select and "
        f"{smoothing.n} estimate, alpha {smoothing.alpha:g}; largest possible radius {smoothing.cap:.3f}",
        f"{images} on {networks.device}{resized}; {per_sample} per sample",
        f"work: {count_of(left, 'image')} left, {work:,} network evaluations, about {clock(calls * networks.seconds)}",
    ]


def certify(job: Job, networks: Networks) -> None:
    """Certify what is left of this shard. Each row is saved when its image is finished."""
    part, parts = shard_of(job.config)
    subset, label = networks.subset.select(slice(part - 1, None, parts)), f"{part}of{parts}"
    done, timing = rows.read_all(job.folder), job.folder / f"timing-{label}.jsonl"
    record.drop_torn_lines(timing, Timing)
    todo = [k for k, i in enumerate(subset.ids.tolist()) if i not in done]
    try:
        with rows.Writer(job.folder, label) as writer, Progress(job, subset, done.values()) as progress:
            for k in todo:
                began, x = time.perf_counter(), sized(subset.x[k : k + 1], networks.denoiser)[0].to(networks.device)
                which = (int(subset.ids[k]), int(subset.y[k]))
                with tensor_cores(networks.tf32):
                    row = job.smoothing.certify(x, *which, networks.denoiser, networks.classifier, progress.call)
                writer.write(row)
                record.append(timing, [{"seconds": time.perf_counter() - began}])
                progress.row(row)
    except KeyboardInterrupt:
        saved = len(rows.read_all(job.folder))
        raise KeyboardInterrupt(
            f"interrupted: {saved} rows are saved in {job.folder}; the same command goes on"
        ) from None


class Progress:
    """The progress of a shard, in calls of the base classifier. Use it as a context manager.

    `done`: the rows that the folder has already.
    """

    def __init__(self, job: Job, subset: Subset, done: Iterable[rows.Row]):
        self.ids, self.calls = {*subset.ids.tolist()}, job.smoothing.calls
        self.rows = [row for row in done if row.id in self.ids]
        self.earlier = self.made = len(self.rows) * self.calls
        self.bar = Bar(console, len(self.ids) * self.calls)

    def __enter__(self) -> "Progress":
        self.bar.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self.bar.__exit__()

    def call(self) -> None:
        """One more call of the base classifier is done."""
        self.made += 1
        right = f", {sum(row.correct for row in self.rows)} of them certified with the label" if self.rows else ""
        self.bar(self.made, f"{len(self.rows)} of {len(self.ids)} images{right}", self.earlier)

    def row(self, row: rows.Row) -> None:
        """One more image is finished."""
        self.rows.append(row)


def judged(job: Job) -> dict | None:
    """Do what is missing of a certification. Returns its summary, or None while other shards are not finished."""
    summary = None if job.config["overwrite"] else read_summary(job.folder)
    if summary is not None:
        console.print(f"already finished, nothing to do ({job.folder})")
        if summary["code"] != job.code:
            console.print("note: the code has changed since; overwrite=true runs it again")
        return summary
    check_early(job)
    fetch_missing({key: value for key, value in job.config.items() if key in (*NETWORKS, GROUP)})
    networks = build(job)
    record.begin(job.folder, job.config, job.code, job.config["overwrite"], rows.PATTERN)
    for line in announcement(job, networks):
        console.print(line)
    certify(job, networks)
    return summarize(job, networks)


def summarize(job: Job, networks: Networks) -> dict | None:
    """Merge the rows and write the summary. Returns None while rows of other shards are missing."""
    ids = networks.subset.ids.tolist()
    missing = len({*ids} - {*rows.read_all(job.folder)})
    if missing:
        console.print(f"shard {job.config['shard']} is done; {missing} of {len(ids)} images are left to the others")
        return None
    merged, smoothing = rows.merge(job.folder, ids), job.smoothing
    settings = {"sigma": smoothing.sigma, "n0": smoothing.n0, "n": smoothing.n, "alpha": smoothing.alpha}
    summary = {"format": FORMAT, "key": job.folder.name, GROUP: job.config["choices"][GROUP], **settings}
    summary |= {"cap": smoothing.cap, **figures(merged), "seconds": record.seconds(job.folder)}
    summary["shape"] = [*sized(networks.subset.x[:1], networks.denoiser).shape[1:]]
    summary["device"] = torch.cuda.get_device_name() if networks.device.startswith("cuda") else "cpu"
    summary |= {"config": job.config, **record.provenance(), "code": job.code}
    record.write_atomic(job.folder / record.SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def read_summary(folder: Path) -> dict | None:
    """The summary of a finished certification, or None. Raises ValueError for a file that is none."""
    return job_files.read_summary(
        folder, FORMAT, {GROUP, "shape"}, "dp certify", "delete it and start again, which writes it from the rows"
    )


def archive(folder: Path, measured: Path = ARCHIVE) -> Path:
    """Copy the rows and the summary of a finished certification below `measured`, and return the copy's folder."""
    if read_summary(folder) is None:
        raise ValueError(f"need a finished certification in {folder}, got none: its command goes on where it stopped")
    return job_files.copy_files(folder, measured, (rows.ALL,))
