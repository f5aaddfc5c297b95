"""DataElixir (Zhou et al. 2024): its settings, and the sanitized set that follows from labels, states and distances."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dp.sanitizing.chain import Rounds, to_floats
from dp.sanitizing.distance import pick
from dp.sanitizing.transitions import Found, find
from dp.subset import Subset

SOURCES = ("clean", "poisoned")  # what the denoiser was trained on


@dataclass(frozen=True)
class Recipe:
    """A training: the recipe conf/training/<name>.yaml, and what is changed in it.

    `steps`, `batch`, `lr` (of the optimizer): None leaves the recipe's own; for the fine-tuning, `lr` a fifth of it.
    """

    name: str
    steps: int | None = None
    batch: int | None = None
    lr: float | None = None

    def words(self, seed: int) -> list[str]:
        """The changes as words of a command, with the seed of the training."""
        given = {"steps": self.steps, "batch": self.batch, "optimizer.lr": self.lr, "seed": seed}
        return [f"training.{key}={value}" for key, value in given.items() if value is not None]


@dataclass(frozen=True)
class DataElixir:
    """The settings of DataElixir.

    `rounds`: noise and denoising. `second`: see `transitions.candidates`. `threshold`: of a class's score. `quantile`:
    of the distances, at which a candidate is taken. `denoiser_trained_on`: `clean` takes the configured denoiser with
    its weights; `poisoned` trains its network on the set that is sanitized. `images`: the first so many of the training
    images in a fixed order, None for all. `batch`: images per chunk, the width of every network call. `seed`: of the
    rounds and of all trainings. `classifier`, `finetuning`, `denoiser`: the trainings.
    Raises ValueError for values outside their ranges.
    """

    rounds: Rounds
    second: int
    threshold: float
    quantile: float
    denoiser_trained_on: str
    images: int | None
    batch: int
    seed: int
    classifier: Recipe
    finetuning: Recipe
    denoiser: Recipe

    def __post_init__(self) -> None:
        if self.denoiser_trained_on not in SOURCES:
            got = f"sanitizer.denoiser_trained_on={self.denoiser_trained_on}"
            raise ValueError(f"need sanitizer.denoiser_trained_on {' or '.join(SOURCES)}, got {got}")
        if min(self.second, self.batch, 1 if self.images is None else self.images) < 1 or self.seed < 0:
            got = f"second={self.second}, batch={self.batch}, images={self.images}, seed={self.seed}"
            raise ValueError(f"need sanitizer.second, batch, images >= 1 and seed >= 0, got {got}")
        if not (self.threshold > 0 and 0 <= self.quantile < 1):
            got = f"threshold={self.threshold}, quantile={self.quantile}"
            raise ValueError(f"need sanitizer.threshold > 0 and 0 <= sanitizer.quantile < 1, got {got}")

    @property
    def trainings(self) -> dict[str, Recipe]:
        """The recipes by their keys."""
        return {"classifier": self.classifier, "finetuning": self.finetuning, "denoiser": self.denoiser}

    def find(self, labels: Tensor, y: Tensor) -> Found:
        """Which images of a set with given labels y (N,) are changed, from the labels (N,1+S) of them and their states.

        See `transitions.find`.
        """
        return find(labels, y, self.second, self.threshold)


class States(NamedTuple):
    """The states of some images of the set.

    `places`: (n,) in the set. `states`: (n,1+S,C,H,W) uint8, the image itself first. `distance`: (n,1+S)
    float64, to the image itself.
    """

    places: Tensor
    states: Tensor
    distance: Tensor

    def taken(self, allowed: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
        """The column (n,) of the candidate that takes an image's place, and that candidate (n,C,H,W) in [0,1].

        `allowed`: (n,1+S) bool; the image itself is always allowed.
        """
        allowed = allowed.clone()
        allowed[:, 0] = True
        column = pick(self.distance, allowed, quantile)
        return column, to_floats(self.states[torch.arange(len(column)), column])


def put(data: Subset, states: States, which: Tensor, allowed: Tensor, label: Tensor, quantile: float) -> None:
    """Put candidates with new labels in the place of images, in the tensors of `data` themselves.

    `which`: (n,) bool, the images of `states` that are replaced. `allowed`: (n,1+S) bool. `label`: (n,). Where the
    image itself is taken, it stays as it is.
    """
    column, x = states.taken(allowed, quantile)
    moved = which & (column > 0)
    data.x[states.places[moved]] = x[moved]
    data.y[states.places[which]] = label[which]
