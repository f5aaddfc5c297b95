"""The Python door: evaluate a defense from a notebook or a program, and load what was measured.

import dp
result = dp.evaluate(purifier=mine, classifier=net, data=(x, y), threat="linf 8/255", protocol="strict")
result.show()
"""

import glob
import inspect
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.commands.tables import line, reported
from dp.diffusion.denoisers import Denoiser
from dp.output import archived, record
from dp.output.console import console
from dp.output.report import show
from dp.output.row_table import row_table
from dp.repeatable import settings_kept
from dp.runs import compose, given
from dp.runs.errors import in_one_line
from dp.runs.lanes import with_lanes
from dp.runs.pipeline import folder_of, judged
from dp.runs.purified import Purified, purified
from dp.subset import Subset

EPS = {"linf": "8/255", "l2": 0.5}  # of given images, where the call names no threat
WIDTH = 200  # columns of a table as text
LANES = 32  # batch slots of given images, at most


@dataclass(frozen=True)
class Result:
    """A finished run: its folder and its summary (docs/results-format.md)."""

    folder: Path
    summary: dict

    def show(self, to: Console = console) -> None:
        """Print the table row with its caveats, as the command does."""
        show(self.summary, to)

    def table(self) -> str:
        """The table row as text."""
        to = Console(width=WIDTH, file=io.StringIO())
        with to.capture() as text:
            to.print(row_table(self.summary))
        return text.get()

    @property
    def rows(self) -> pd.DataFrame:
        """The figures of the run in percent, with one line for each decision rule."""
        return pd.DataFrame([line(self.summary, self.folder.name, *each) for each in reported(self.summary)])

    @property
    def samples(self) -> pd.DataFrame:
        """The class of every sample, with one line for each condition, seed, image and sample.

        Columns: `arm` (defended, undefended or null), `seed`, `id`, `label`, `sample`, `clean` and `adv`, the classes
        of the clean and of the attacked image. `clean` is missing under `null`.
        """
        return pd.DataFrame(_samples(_rows(self.folder)))


@in_one_line()
def evaluate(
    purifier: str | Callable = "none",
    classifier: str | nn.Module | None = None,
    data: str | Subset | tuple[Any, Any] = "digits",
    threat: str | None = None,
    attack: str | None = None,
    protocol: str = "strict",
    *,
    denoiser: str | Denoiser | None = None,
    like: str | None = None,
    taps: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    config_dirs: Sequence[str | Path] = (),
) -> Result:
    """Attack and score a defense, as `dp run` does, and return its result. A finished run is read; a begun one goes on.

    `purifier`: an option's name, or a function `purify(x, denoiser, classifier, rng, *, on_step=None)` of images
    x (B,C,H,W) in [0,1] that returns purified images in [0,1] and draws its noise from `rng` (docs/extending.md).
    `classifier`: an option's name, a `dp.classifiers.Classifier`, or a network that gives logits (B,K) for images in
    [0,1]; by default the dataset's own. `taps`: its attention taps, see `Classifier`. `denoiser`: an option's name or a
    `dp.diffusion.denoisers.Denoiser`; by default the dataset's own, if there is one.
    `data`: an option's name, or images and labels (x, y) as arrays or tensors, x (N,C,H,W) in [0,1] and y (N,). Their
    ids are 0 to N - 1; a `dp.subset.Subset` has its own. `like`: the dataset whose settings given images take, such as
    the purifier's noise times. `threat`: norm and budget, such as `linf 8/255`. `attack`: an option's name; by default
    the protocol's. `protocol`: an option's name. `settings`: further keys of the command line with their values, such
    as {"purifier.t": 0.1, "protocol.seeds": [0]}. `config_dirs`: folders of plug-ins.
    What a program gives lives in this process only, so such a run has one worker.
    Raises ValueError or OSError with one line that says what was expected, what was found and what to do.
    """
    objects = _Objects(like)
    words = [objects.word("dataset", data), f"protocol={protocol}"]
    words += [objects.word("purifier", purifier)]
    words += [objects.word("classifier", classifier, taps)] if classifier is not None else _of(like, data, "classifier")
    words += [objects.word("denoiser", denoiser)] if denoiser is not None else _of(like, data, "denoiser")
    words += [] if attack is None else [f"attack={attack}"]
    words += _threat(threat)
    words += [f"{key}={_text(value)}" for key, value in objects.checked(settings or {}).items()]
    setup = compose.setup(*words, *objects.own_words(), config_dirs=[*objects.folders(), *config_dirs])
    with settings_kept():
        setup = with_lanes(setup)
        folder = folder_of(setup)
        summary = judged(setup, folder)
    if summary is None:
        raise ValueError(f"need settings without a shard, got a shard: the others are not finished in {folder}")
    return Result(folder, summary)


@in_one_line()
def purify(
    images: Any,
    purifier: str = "hetero",
    dataset: str = "digits",
    *,
    samples: int = 1,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    config_dirs: Sequence[str | Path] = (),
) -> Purified:
    """Purify images of one's own, (B,C,H,W) in [0,1], an array or a tensor, with the networks of a dataset.

    `purifier`, `dataset`: names of options. `samples`: how often each image is purified, each time with other noise.
    `seed`: of the noise. `settings`: further keys of the command line, such as {"purifier.t": 0.1}. `config_dirs`:
    folders of plug-ins. `dp purify` does the same with image files. Raises ValueError or OSError with one line.
    """
    x = _subset((images, np.zeros(len(images), dtype=np.int64))).x
    words = [f"{key}={_text(value)}" for key, value in (settings or {}).items()]
    config = compose.composed(f"dataset={dataset}", f"purifier={purifier}", *words, config_dirs=config_dirs)
    with settings_kept():
        return purified(config, x, samples, seed)


def load(pattern: str | Path = "results/runs/*") -> list[Result]:
    """The finished runs, archived or not, whose folders fit a pattern. Raises ValueError if there is none."""
    summaries = [(Path(name), record.read_summary(Path(name))) for name in sorted(glob.glob(str(pattern)))]
    found = [Result(folder, summary) for folder, summary in summaries if summary is not None]
    if not found:
        raise ValueError(f"need folders of finished runs, got none for {pattern}: dp run makes them")
    return found


class _Objects:
    """What a program gives, as a folder of yamls that a configuration can name. `like`: see `evaluate`."""

    def __init__(self, like: str | None):
        self.like = like
        self.nodes: dict[str, dict] = {}
        self.images = 0

    def word(self, group: str, value: Any, taps: Sequence[str] = ()) -> str:
        """The word of the command line that chooses an option by its name, or a given object."""
        if isinstance(value, str):
            return f"{group}={value}"
        if group == "dataset":
            value = _subset(value)
            self.images = len(value.ids)
        self.nodes[group] = self._node(group, value, taps)
        return f"{group}={given.option(self.nodes[group])}"

    def _node(self, group: str, value: Any, taps: Sequence[str]) -> dict:
        """The node of a given object. Raises ValueError for one of another kind."""
        node = {"name": _name(value), "sha256": given.hold(value)}
        if group == "dataset":
            return self._dataset({"_target_": "dp.runs.given.images", **node})
        if group == "classifier":
            _check(value, nn.Module, "classifier", "a network or the name of an option")
            node |= {} if isinstance(value, Classifier) else {"taps": list(taps)}
        elif group == "denoiser":
            _check(value, Denoiser, "denoiser", "a dp.diffusion.denoisers.Denoiser or the name of an option")
        else:
            _check_purifier(value)
        return {"_target_": f"dp.runs.given.{group}", **node}

    def _dataset(self, loader: dict) -> dict:
        node = {"name": "images", "eps": EPS, "lanes": min(LANES, self.images), "draws_per_call": 4}
        if self.like is not None:
            node = compose.composed(f"dataset={self.like}", "purifier=none", "attack=none")["dataset"]
        return {**node, "loader": loader, "full_size": self.images}

    def checked(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings. Raises ValueError for `cost`, and for a number of images that is not that of the given ones."""
        if _text(settings.get("cost", False)) != "false":
            raise ValueError("need cost in a command, dp run cost=true, got it in settings, where a run is made")
        asked = settings.get("protocol.images", self.images)
        if self.images and _text(asked) != _text(self.images):
            raise ValueError(
                f"need protocol.images as many as the given images, {self.images}, got {asked}: give fewer in data"
            )
        return settings

    def own_words(self) -> list[str]:
        """The words that given objects need."""
        if not self.nodes:
            return []
        return ["workers=1", *([f"protocol.images={self.images}"] if self.images else [])]

    def folders(self) -> list[Path]:
        """The folder of their yamls; none without given objects."""
        return [given.folder(self.nodes)] if self.nodes else []


def _of(like: str | None, data: Any, group: str) -> list[str]:
    """The word that chooses the network of the dataset `like` for given images."""
    return [] if isinstance(data, str) or like is None else [f"{group}={like}"]


def _threat(threat: str | None) -> list[str]:
    """The words of a threat such as `linf 8/255`."""
    if threat is None:
        return []
    if not isinstance(threat, str):
        raise ValueError(f"need threat as text, such as 'linf 8/255', got {threat!r}")
    norm, _, eps = threat.strip().partition(" ")
    return [f"threat_model={norm}", *([f"threat_model.eps={eps.strip()}"] if eps else [])]


def _text(value: Any) -> str:
    """A value as a word of the command line."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        value = value.tolist()
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _name(value: Any) -> str:
    """What an object is called in output."""
    return value.__name__ if inspect.isfunction(value) or inspect.isclass(value) else type(value).__name__


def _check(value: Any, kind: type, what: str, wanted: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"need {what} as {wanted}, got {type(value).__name__}")


def _check_purifier(value: Any) -> None:
    """Raises ValueError unless a purifier can be called as every other."""
    wanted = "purify(x, denoiser, classifier, rng, *, on_step=None)"
    if not callable(value):
        raise ValueError(f"need purifier as the name of an option or a function {wanted}, got {type(value).__name__}")
    try:
        inspect.signature(value).bind(None, None, None, None, on_step=None)
    except TypeError as error:
        raise ValueError(f"need purifier as a function {wanted}, got {_name(value)}: {error}") from None


def _subset(data: Any) -> Subset:
    """Given images as a `Subset`. Raises ValueError for what are none."""
    if not isinstance(data, Subset):
        if not isinstance(data, tuple | list) or len(data) != 2:
            raise ValueError(f"need data as images and labels (x, y), or a name, got {type(data).__name__}")
        x, y = (torch.as_tensor(np.asarray(part) if not isinstance(part, Tensor) else part) for part in data)
        data = Subset(torch.arange(len(x)), x, y)
    ids, x, y = data
    if x.dim() != 4 or y.shape != ids.shape or len(x) != len(ids) or not len(x):
        raise ValueError(f"need images (N,C,H,W) and labels (N,), got {tuple(x.shape)} and {tuple(y.shape)}")
    if not x.is_floating_point() or not 0 <= float(x.min()) <= float(x.max()) <= 1:
        raise ValueError(f"need images as floats in [0,1], got {x.dtype} from {float(x.min()):g} to {float(x.max()):g}")
    if y.is_floating_point() or int(y.min()) < 0:
        raise ValueError(f"need labels as whole numbers from 0 on, got {y.dtype} from {float(y.min()):g} on")
    return Subset(ids.cpu().long(), x.detach().cpu().float().contiguous().clone(), y.cpu().long())


def _rows(folder: Path) -> list[dict]:
    """The rows of a finished run, archived or not."""
    if (folder / record.IMAGES).exists():
        return [dict(row) for row in record.read_rows(folder).values()]
    return archived.read_rows(folder)


def _samples(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines of `Result.samples`."""
    for row in rows:
        for k, adv in enumerate(row["adv"]):
            head = {name: row[name] for name in ("arm", "seed", "id", "label")}
            yield head | {"sample": k, "clean": row["clean"][k] if row["clean"] else None, "adv": adv}
