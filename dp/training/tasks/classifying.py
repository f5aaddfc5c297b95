"""Classification by cross entropy."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dp.classifiers import Classifier
from dp.output.console import console
from dp.subset import Subset
from dp.training.augment import Augment
from dp.training.outputs import write_table
from dp.training.task import Task


class Classifying(Task):
    """Classification by cross entropy. Each epoch is a seeded permutation; an incomplete last batch is left out."""

    def __init__(self, classifier: Classifier, data: Subset, *, augment: Sequence[Augment] = ()):
        self.classifier, self.net = classifier, classifier.net
        self.data, self.augment = data, augment
        self.order = torch.empty(0, dtype=torch.long)  # the rest of the epoch

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a batch on the CPU: x (b,C,H,W) in [0,1], y (b,). Raises ValueError for too few images."""
        if b > len(self.data.x):
            raise ValueError(f"need a batch of at most {len(self.data.x)} images, got batch={b}")
        if len(self.order) < b:
            self.order = torch.randperm(len(self.data.x), generator=generator)
        index, self.order = self.order[:b], self.order[b:]
        x = self.data.x[index]
        for change in self.augment:
            x = change(x, generator)
        return x, self.data.y[index]

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean cross entropy of a batch as drawn."""
        x, y = batch
        device = next(self.net.parameters()).device
        return F.cross_entropy(self.classifier(x.to(device)), y.to(device))

    def state(self) -> dict:
        """The rest of the epoch."""
        return {"order": self.order.clone()}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""
        self.order = state["order"]

    def judge(self, test: Subset, folder: Path, seed: int) -> dict[str, float]:
        """Accuracy on the test images, and of each class in judge.csv."""
        right = correct(self.classifier, test)
        percent = 100 * right.float().mean().item()
        classes = [(k, right[test.y == k]) for k in test.y.unique().tolist()]
        rows = [(k, len(each), 100 * each.float().mean().item()) for k, each in classes]
        write_table(folder / "judge.csv", ("class", "images", "accuracy"), rows)
        console.print(f"classifier: {percent:.1f} % of {len(test.x)} test images")
        return {"accuracy": percent}


@torch.no_grad()
def correct(classifier: Classifier, data: Subset, batch: int = 128) -> Tensor:
    """(N,) bool on the CPU: which images are classified correctly."""
    device = next(classifier.parameters()).device
    parts = zip(data.x.split(batch), data.y.split(batch), strict=True)
    return torch.cat([classifier(x.to(device)).argmax(1).cpu() == y for x, y in parts])
