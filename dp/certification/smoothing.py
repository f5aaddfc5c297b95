"""Randomized smoothing (Cohen et al. 2019, CERTIFY): the class of the smoothed classifier and its certified radius."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dp.certification import bare
from dp.certification.bounds import ABSTAIN, cap, radius_of
from dp.certification.rows import Row
from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.rng import Streams, draws_of

SELECT, ESTIMATE = "certify-select", "certify-estimate"  # stages of the random streams: no noise is used by both
Base = Callable[..., Tensor]  # (noised x (B,C,H,W), sigma, denoiser, classifier, rng) -> classes (B,)
Predict = Callable[[Tensor, Streams], Tensor]  # the same with everything but x and rng bound


@dataclass(frozen=True)
class Smoothing:
    """A base classifier under Gaussian noise, and how it is certified.

    `base`: a function that names the class of each noised image; its own noise comes from the streams that it is given.
    `sigma`: std of the smoothing noise, images in [0,1]. `n0`, `n`: samples that select the class, and that estimate
    its probability. `alpha`: the chance that a radius is wrong, per image. `images`, `every`: the first so many images
    of the dataset's fixed subset; with `every` those of the ids 0, every, 2 every, ... `batch`: noised images per
    network call. The last call is padded, because the width of a call changes the last bit of a result.
    Raises ValueError for values outside these ranges.
    """

    base: Base
    sigma: float
    n0: int
    n: int
    alpha: float
    images: int
    every: int | None
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if not self.sigma > 0 or not 0 < self.alpha < 1:
            raise ValueError(f"need sigma > 0 and 0 < alpha < 1, got sigma={self.sigma}, alpha={self.alpha}")
        counts = {"n0": self.n0, "n": self.n, "images": self.images, "batch": self.batch, "every": self.every or 1}
        wrong = [f"certificate.{name}={count}" for name, count in counts.items() if count < 1]
        if wrong or self.every == 0:
            raise ValueError(f"need whole numbers >= 1, got {', '.join(wrong) or 'certificate.every=0'}")
        if self.cap == 0:
            fewest = math.floor(math.log(self.alpha) / math.log(0.5)) + 1
            raise ValueError(
                f"need n >= {fewest} for alpha={self.alpha}, got n={self.n}: with fewer samples every image is an "
                "abstention"
            )

    @property
    def bare(self) -> bool:
        """True if the base classifier is the classifier alone, which needs no denoiser."""
        return (self.base.func if isinstance(self.base, partial) else self.base) is bare.classes

    @property
    def cap(self) -> float:
        """The largest radius that `n` samples can certify."""
        return cap(self.n, self.alpha, self.sigma)

    @property
    def calls(self) -> int:
        """Calls of the base classifier for an image."""
        return math.ceil(self.n0 / self.batch) + math.ceil(self.n / self.batch)

    def certify(
        self,
        x: Tensor,
        image: int,
        label: int,
        denoiser: Denoiser | None,
        classifier: Classifier,
        on_call: Callable[[], object] = tuple,
    ) -> Row:
        """The row of one image x (C,H,W) in [0,1] on the networks' device. `image`: its id in the full test set.

        `on_call` is called after every call of the base classifier.
        """
        before = denoiser.nfe if denoiser is not None else 0

        def predict(noised: Tensor, rng: Streams) -> Tensor:
            classes = self.base(noised, self.sigma, denoiser, classifier, rng)
            on_call()
            return classes

        selected = int(self.counts(predict, x, image, SELECT, self.n0).argmax())  # the lowest of tied classes
        counts = self.counts(predict, x, image, ESTIMATE, self.n)
        count = int(counts[selected]) if selected < len(counts) else 0
        radius = radius_of(count, self.n, self.alpha, self.sigma)
        predicted = selected if radius > 0 else ABSTAIN
        calls = self.calls if denoiser is None else denoiser.nfe - before
        return Row(image, label, predicted, radius, count, self.n, int(predicted == label), calls * self.batch)

    def counts(self, predict: Predict, x: Tensor, image: int, stage: str, samples: int) -> Tensor:
        """How often `predict` names each class, (K,) with K - 1 the highest one named, under `samples` noises of x."""
        rng = Streams([image], self.seed, stage)
        calls = [self.call(predict, x, rng, first)[: samples - first] for first in range(0, samples, self.batch)]
        return torch.bincount(torch.cat(calls))

    @torch.no_grad()
    def call(self, predict: Predict, x: Tensor, rng: Streams, first: int) -> Tensor:
        """The classes (batch,) that `predict` names under the noises `first`, `first` + 1, ... of x (C,H,W)."""
        streams = draws_of(rng, [(0, first + k) for k in range(self.batch)])
        copies = x.expand(self.batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        noised = copies + self.sigma * streams.randn_like(copies)  # the base continues with the same streams
        return predict(noised, streams).cpu()
