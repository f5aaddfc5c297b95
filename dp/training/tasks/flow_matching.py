"""Conditional flow matching from noised to clean images: the training of FlowPure's Gaussian form."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from dp.classifiers import Classifier
from dp.diffusion.flow import Flow
from dp.diffusion.sampling import to_01, to_pm1
from dp.output.console import console
from dp.purifiers import flowpure
from dp.rng import Streams
from dp.subset import Subset
from dp.training.augment import Augment
from dp.training.outputs import write_images, write_table
from dp.training.task import Task

BATCH = 128  # of the judge


class FlowMatching(Task):
    """The mean of (v(z, t) + high n)^2 at z = x + (1 - t) high n, with t uniform in [0,1], x in [-1,1].

    Images are drawn with replacement. -high n is the velocity of the straight line from x + high n to x.
    `judged`: times at which the judge enters the flow, which it follows in `steps` steps. `classifier`: what it
    classifies with.
    """

    def __init__(
        self,
        denoiser: Flow,
        data: Subset,
        *,
        judged: Sequence[float],
        steps: int,
        classifier: Classifier,
        augment: Sequence[Augment] = (),
    ):
        self.denoiser, self.net, self.classifier = denoiser, denoiser.net, classifier
        self.x, self.augment, self.judged, self.steps = to_pm1(data.x), augment, judged, steps

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a batch on the CPU: x (b,C,H,W) in [-1,1], t (b,), n (b,C,H,W)."""
        x = self.x[torch.randint(len(self.x), (b,), generator=generator)]
        for change in self.augment:
            x = change(x, generator)
        return x, torch.rand(b, generator=generator), torch.randn(x.shape, generator=generator)

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean loss of a batch as drawn."""
        device = next(self.net.parameters()).device
        x, t, n = (part.to(device) for part in batch)
        z = x + (1 - t).view(-1, 1, 1, 1) * self.denoiser.high * n
        return (self.denoiser.velocity(z, t) + self.denoiser.high * n).square().mean()

    @torch.no_grad()
    def judge(self, test: Subset, folder: Path, seed: int) -> dict[str, float]:
        """By time of entering the flow: the noise, the accuracy on noisy test images and on those at the flow's end,
        and the mean square error of these.
        """
        rows, figures = [], {}
        for t in self.judged:
            noisy, purified, error = self._judged(test, t, seed, folder / f"purified_{t:g}.png")
            rows.append((t, self.denoiser.high / 2 * (1 - t), noisy, purified, error))
            figures[f"accuracy/t={t:g}"] = purified
        write_table(folder / "judge.csv", ("t", "pixel_sigma", "noisy", "purified", "error"), rows)
        words = ", ".join(f"{row[3]:.1f} ({row[2]:.1f}) at {row[1]:.3g}" for row in rows)
        console.print(f"flow: % of {len(test.x)} test images right after the flow (before it), by noise: {words}")
        return figures

    def _judged(self, test: Subset, t: float, seed: int, picture: Path) -> tuple[float, float, float]:
        """The accuracies in percent, and the error. Writes a picture of eight: clean, noisy, purified."""
        device, sums, shown = next(self.net.parameters()).device, torch.zeros(3), []
        given = {"pixel_sigma": self.denoiser.high / 2, "t_start": t, "steps": self.steps}
        for x, y, ids in zip(test.x.split(BATCH), test.y.split(BATCH), test.ids.split(BATCH), strict=True):
            x, y, states = x.to(device), y.to(device), []
            streams, keep = Streams(ids, seed, "judge"), lambda i, sigma, z, x0, to=states: to.append(z)
            purified = flowpure.purify(x, self.denoiser, self.classifier, streams, on_step=keep, **given)
            noisy = to_01(states[0])
            right = [(self.classifier(image).argmax(1) == y).sum() for image in (noisy, purified)]
            sums += torch.stack([*right, (purified - x).square().mean(dim=(1, 2, 3)).sum()]).cpu()
            shown = shown or [x[:8], noisy[:8], purified[:8]]
        write_images(picture, torch.cat(shown))
        noisy, purified, error = (sums / len(test.x)).tolist()
        return 100 * noisy, 100 * purified, error
