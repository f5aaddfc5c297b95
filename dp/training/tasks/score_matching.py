"""Denoising score matching over a range of noise levels: the training of NCSNv2, and so of ADP."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from dp.classifiers import Classifier
from dp.diffusion.sampling import clip_01
from dp.output.console import console
from dp.purifiers.adp import Adp
from dp.rng import Streams
from dp.subset import Subset
from dp.training.augment import Augment
from dp.training.outputs import write_images, write_table
from dp.training.task import Task

BATCH = 128  # of the judge


class ScoreMatching(Task):
    """Denoising score matching (Song and Ermon 2020): the mean of (net(x + sigma n) + n)^2 / 2, x in [0,1].

    net / sigma is then the score at the level sigma, and the weight sigma^2 of each level makes this loss of it.
    Images are drawn with replacement, and sigma from `levels` levels between `high` and `low`, a geometric sequence.
    `judged`: noise levels at which the judge purifies. `classifier`: what it classifies with.
    Raises ValueError unless high > low > 0 and levels >= 2.
    """

    def __init__(
        self,
        purifier: Adp,
        data: Subset,
        *,
        high: float,
        low: float,
        levels: int,
        judged: Sequence[float],
        classifier: Classifier,
        augment: Sequence[Augment] = (),
    ):
        if not high > low > 0 or levels < 2:
            raise ValueError(f"need high > low > 0 and levels >= 2, got high={high}, low={low}, levels={levels}")
        self.purifier, self.net, self.classifier = purifier, purifier.net, classifier
        self.x, self.augment, self.judged = data.x, augment, judged
        self.sigmas = torch.linspace(math.log(high), math.log(low), levels, dtype=torch.float64).exp().float()

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a batch on the CPU: x (b,C,H,W) in [0,1], sigma (b,1,1,1), n (b,C,H,W)."""
        x = self.x[torch.randint(len(self.x), (b,), generator=generator)]
        for change in self.augment:
            x = change(x, generator)
        sigma = self.sigmas[torch.randint(len(self.sigmas), (b,), generator=generator)].view(-1, 1, 1, 1)
        return x, sigma, torch.randn(x.shape, generator=generator)

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean loss of a batch as drawn."""
        device = next(self.net.parameters()).device
        x, sigma, n = (part.to(device) for part in batch)
        return 0.5 * (self.purifier.evaluate(self.net, x + sigma * n) + n).square().mean()

    def judge(self, test: Subset, folder: Path, seed: int) -> dict[str, float]:
        """Accuracy on test images with noise, and after it is removed, by noise level."""
        rows, figures = [], {}
        for level in self.judged:
            purifier = copy.copy(self.purifier)
            purifier.pixel_sigma = level
            noisy, purified = self._accuracies(purifier, test, folder, seed)
            rows.append((level, noisy, purified))
            figures[f"accuracy/sigma={level:.4g}"] = purified
        write_table(folder / "judge.csv", ("pixel_sigma", "noisy", "purified"), rows)
        words = ", ".join(f"{purified:.1f} ({noisy:.1f}) at {level:g}" for level, noisy, purified in rows)
        console.print(f"ADP: % of {len(test.x)} test images that are right after purification (before it): {words}")
        return figures

    @torch.no_grad()
    def _accuracies(self, purifier: Adp, test: Subset, folder: Path, seed: int) -> tuple[float, float]:
        """Accuracy on noisy and on purified images in percent; and a picture of eight: clean, noisy, purified."""
        right, shown = torch.zeros(2), []
        device = next(self.net.parameters()).device
        for x, y, ids in zip(test.x.split(BATCH), test.y.split(BATCH), test.ids.split(BATCH), strict=True):
            x, y = x.to(device), y.to(device)
            noisy = clip_01(x + purifier.pixel_sigma * Streams(ids, seed, "judge").randn_like(x))
            purified = purifier(x, None, self.classifier, Streams(ids, seed, "judge"))
            right += torch.stack([(self.classifier(z).argmax(1) == y).sum().cpu() for z in (noisy, purified)])
            shown = shown or [x[:8], noisy[:8], purified[:8]]
        write_images(folder / f"purified_{purifier.pixel_sigma:g}.png", torch.cat(shown))
        noisy, purified = (100 * right / len(test.x)).tolist()
        return noisy, purified
