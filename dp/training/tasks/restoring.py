"""Restoring: the network of a purifier learns to rebuild images from what its random transform leaves of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dp.attacks.base import Attack
from dp.classifiers import Classifier
from dp.output.console import console
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel
from dp.training.augment import Augment
from dp.training.noise import Drawn
from dp.training.outputs import write_images, write_table
from dp.training.task import Task
from dp.training.tasks.adversarial import STAGE, attacked

SHOWN = 16  # images in the picture
BATCH = 128  # images that are judged at once


class Restoring(Task):
    """The mean of |x_hat - x| where the result counts, for clean or attacked input, plus losses of a classifier.

    `purifier`: has `practice(x, rng)`, which draws the transform, and `attempt(x, *draws)`, which gives x_hat (B,C,H,W)
    and where it counts (B,1,H,W). The target is the clean image (deviation 132: target and range of the tuning).
    `attack`: attacks the input of a `share` in [0,1] of the images within `threat`, on `classifier` alone; null for no
    attack. `cross_entropy`, `features`: weights of the classifier's loss on x_hat and of the mean difference of its
    features between x_hat and x (deviation 129: whose features). `judge_attack`: the attack of the judge.
    Raises ValueError for another share.
    """

    def __init__(
        self,
        purifier: Any,
        data: Subset,
        *,
        classifier: Classifier,
        threat: ThreatModel,
        judge_attack: Attack,
        attack: Attack | None = None,
        share: float = 1.0,
        cross_entropy: float = 0.0,
        features: float = 0.0,
        augment: Sequence[Augment] = (),
    ):
        if not 0 <= share <= 1:
            raise ValueError(f"need 0 <= share <= 1, got share={share}")
        self.purifier, self.net, self.data, self.classifier = purifier, purifier.net, data, classifier
        self.threat, self.attack, self.judge_attack, self.share = threat, attack, judge_attack, share
        self.cross_entropy, self.features, self.augment = cross_entropy, features, augment

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a batch on the CPU, with replacement: x (b,C,H,W) in [0,1], y (b,), which are attacked (b,), a number
        (b,) that names the noise of each attack, and the draws of the purifier.
        """
        index = torch.randint(len(self.data.x), (b,), generator=generator)
        x = self.data.x[index]
        for change in self.augment:
            x = change(x, generator)
        chosen, names = torch.rand(b, generator=generator) < self.share, torch.randint(2**62, (b,), generator=generator)
        return x, self.data.y[index], chosen, names, *self.purifier.practice(x, Drawn(generator))

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean loss of a batch as drawn."""
        device = next(self.net.parameters()).device
        x, y, chosen, names, *draws = (part.to(device) for part in batch)
        given = x
        if self.attack is not None:
            found = attacked(self.classifier, self.attack, x, y, self.threat, Streams(names, 0, STAGE))
            given = torch.where(chosen.view(-1, 1, 1, 1), found, x)
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
        uniform noise of the threat model's eps, and attacked by the judge's attack on the classifier alone. A picture
        of each before and after.
        """
        rows, shown, device = [], [], next(self.net.parameters()).device
        images, labels = test.x.to(device), test.y.to(device)
        for name in ("clean", "noise", "attacked"):
            parts = []
            for ids, x, y in zip(*(t.split(BATCH) for t in (test.ids, images, labels)), strict=True):
                given = self._changed(name, x, y, Streams(ids, seed, STAGE))
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

    def _changed(self, how: str, x: Tensor, y: Tensor, rng: Streams) -> Tensor:
        if how == "clean":
            return x
        if how == "noise":
            return self.threat.random_start(x, rng)
        return attacked(self.classifier, self.judge_attack, x, y, self.threat, rng)
