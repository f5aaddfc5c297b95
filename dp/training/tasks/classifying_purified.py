"""Classification of images that a purifier made, for a classifier that belongs to it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from dp.classifiers import Classifier
from dp.output.console import console
from dp.subset import Subset
from dp.training.augment import Augment
from dp.training.outputs import write_images, write_table
from dp.training.tasks.classifying import Classifying, correct

VOTES, SHOWN = 10, 16


class ClassifyingPurified(Classifying):
    """Cross entropy of purified images, purified anew each time.

    `augment`: changes of the images before. `purify`: (x (B,C,H,W) in [0,1], generator) -> purified images.
    """

    def __init__(self, classifier: Classifier, data: Subset, *, purify: Augment, augment: Sequence[Augment] = ()):
        super().__init__(classifier, data, augment=[*augment, purify])
        self.purify = purify

    def judge(self, test: Subset, folder: Path, seed: int) -> dict[str, float]:
        """Accuracy on the test images as they are, on purified ones, and by the vote of 10 purifications. A picture of
        the first before and after.
        """
        generator = torch.Generator().manual_seed(seed)
        samples = [test._replace(x=self.purify(test.x, generator)) for _ in range(VOTES)]
        right = torch.stack([correct(self.classifier, sample) for sample in samples]).float()
        rows = [
            ("as they are", 100 * correct(self.classifier, test).float().mean().item()),
            ("purified", 100 * right.mean().item()),
            (f"more than half of {VOTES}", 100 * (right.mean(0) > 0.5).float().mean().item()),
        ]
        write_table(folder / "judge.csv", ("images", "accuracy"), rows)
        write_images(folder / "purified.png", torch.cat([test.x[:SHOWN], samples[0].x[:SHOWN]]), columns=SHOWN)
        console.print(f"classifier, {len(test.x)} test images: " + ", ".join(f"{n} {p:.1f} %" for n, p in rows))
        return {f"accuracy/{name}": percent for name, percent in rows}
