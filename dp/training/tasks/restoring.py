"""Restoring: the network of a purifier learns to rebuild images from what its random transform leaves of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dp.classifiers import Classifier
from dp.output.console import console
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import parse_eps
from dp.training.augment import Augment
from dp.training.noise import Drawn
from dp.training.outputs import write_images, write_table
from dp.training.task import Task

SHOWN = 16  # images in the picture
BATCH = 128  # images that are judged at once


class Restoring(Task):
    """The mean of |x_hat - x| where the result counts, for clean or attacked input, plus losses of a classifier.

    `purifier`: has `practice(x, rng)`, which draws the transform, and `attempt(x, *draws)`, which gives x_hat (B,C,H,W)
    and where it counts (B,1,H,W). The target is the clean image (deviation 132: target and range of
    the tuning). `attacked`: the share in [0,1] of the images whose
    input is attacked by PGD of `steps` steps on the cross entropy of `classifier` alone, within +-`eps`, the `start` of
    which is `random` or `clean`; one step from the clean image is FGSM. `cross_entropy`, `features`: weights of the
    classifier's loss on x_hat and of the mean difference of its features between x_hat and x (deviation 129: whose
    features). Raises ValueError for values outside these ranges.
    """

    def __init__(
        self,
        purifier: Any,
        data: Subset,
        *,
        classifier: Classifier,
        eps: float | str,
        steps: int = 1,
        start: str = "clean",
        attacked: float = 0.0,
        cross_entropy: float = 0.0,
        features: float = 0.0,
        augment: Sequence[Augment] = (),
    ):
        if not 0 <= attacked <= 1 or steps < 1 or start not in ("clean", "random"):
            raise ValueError(
                f"need 0 <= attacked <= 1, steps >= 1 and start clean or random, got {attacked=}, {steps=}, {start=}"
            )
        self.purifier, self.net, self.data, self.classifier = purifier, purifier.net, data, classifier
        self.eps, self.steps, self.start = parse_eps(eps), steps, start
        self.attacked, self.augment = attacked, augment
        self.cross_entropy, self.features = cross_entropy, features

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a batch on the CPU, with replacement: x (b,C,H,W) in [0,1], y (b,), which are attacked (b,), where their
        attacks start (b,C,H,W) in [-1,1], and the draws of the purifier.
        """
        index = torch.randint(len(self.data.x), (b,), generator=generator)
        x = self.data.x[index]
        for change in self.augment:
            x = change(x, generator)
        chosen = torch.rand(b, generator=generator) < self.attacked
        start = 2 * torch.rand(x.shape, generator=generator) - 1 if self.start == "random" else torch.zeros_like(x)
        return x, self.data.y[index], chosen, start, *self.purifier.practice(x, Drawn(generator))

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean loss of a batch as drawn."""
        device = next(self.net.parameters()).device
        x, y, chosen, start, *draws = (part.to(device) for part in batch)
        given = x
        if self.attacked:
            attacked = pgd(self.classifier, x, y, start, eps=self.eps, steps=self.steps)
            given = torch.where(chosen.view(-1, 1, 1, 1), attacked, x)
        x_hat, counts = self.purifier.attempt(given, *draws)
        error = ((x_hat - x).abs() * counts).flatten(1).sum(1) / (counts.flatten(1).sum(1) * x.shape[1])
        total = error.mean()
        if self.cross_entropy:
            total = total + self.cross_entropy * F.cross_entropy(self.classifier(x_hat.clamp(0, 1)), y)
        if self.features:
            mixed = torch.where(counts, x_hat, x)
            pairs = zip(self.classifier.features(mixed), self.classifier.features(x), strict=True)
            differences = [(ours - theirs).abs().mean() / theirs.abs().mean() for ours, theirs in pairs]
            total = total + self.features * torch.stack(differences).mean()
        return total

    def judge(self, test: Subset, folder: Path, seed: int) -> dict[str, float]:
        """Mean absolute error and the classifier's accuracy with and without the purifier, of clean test images, under
        uniform noise of +-eps, and attacked by PGD of 10 steps on the classifier alone. A picture of each before and
        after.
        """
        generator, rows, shown = torch.Generator().manual_seed(seed), [], []
        noise = 2 * torch.rand(test.x.shape, generator=generator) - 1
        for name, size in (("clean", None), ("noise", 0), ("pgd", 10)):
            parts = []
            for x, y, n, ids in zip(*(t.split(BATCH) for t in (test.x, test.y, noise, test.ids)), strict=True):
                given = x if size is None else pgd(self.classifier, x, y, n, eps=self.eps, steps=size)
                with torch.no_grad():
                    x_hat = self.purifier(given, None, self.classifier, Streams(ids, seed, "clean"))
                    right = [100 * (self.classifier(image).argmax(1) == y).float() for image in (given, x_hat)]
                errors = [(image - x).abs().mean(dim=(1, 2, 3)) for image in (given, x_hat)]
                parts.append(torch.stack([*errors, *right]))
                shown += [given[:SHOWN], x_hat[:SHOWN]] if ids[0] == test.ids[0] else []
            rows.append((name, *torch.cat(parts, dim=1).mean(1).tolist()))
        columns = ("input", "error_before", "error_after", "accuracy_before", "accuracy_after")
        write_table(folder / "judge.csv", columns, rows)
        write_images(folder / "purified.png", torch.cat(shown), columns=SHOWN)
        words = ", ".join(f"{name} {after:.1f} %" for name, *_, after in rows)
        console.print(f"purifier: error {rows[0][2]:.4f}; accuracy on {len(test.x)} test images: {words}")
        return {f"{column}/{row[0]}": row[k] for row in rows for k, column in enumerate(columns) if k}


def pgd(classifier: Classifier, x: Tensor, y: Tensor, start: Tensor, *, eps: float, steps: int) -> Tensor:
    """Attack images x (B,C,H,W) in [0,1] on the classifier alone, within +-eps: sign steps up the cross entropy.

    `start` (B,C,H,W) in [-1,1], in units of eps. A step is eps of a single one, else 2.5 eps / steps.
    """
    size = eps if steps == 1 else 2.5 * eps / max(1, steps)
    attacked = (x + eps * start).clamp(0, 1)
    for _ in range(steps):
        leaf = attacked.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(F.cross_entropy(classifier(leaf), y, reduction="sum"), leaf)
        attacked = (attacked + size * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return attacked.detach()
