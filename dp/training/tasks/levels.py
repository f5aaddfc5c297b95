"""Levels: an autoregressive network learns the probability of each value of an image given those before it."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dp.diffusion.sampling import to_pm1
from dp.output.console import console
from dp.purifiers.pixeldefend import PixelDefend
from dp.rng import Streams
from dp.subset import Subset
from dp.training.augment import Augment
from dp.training.outputs import write_images, write_table
from dp.training.task import Task

SHOWN = 16  # images in the picture


class Levels(Task):
    """The mean cross entropy, in nats a value, of the levels of images. Images are drawn with replacement."""

    def __init__(self, purifier: PixelDefend, data: Subset, *, augment: Sequence[Augment] = ()):
        self.purifier, self.net, self.data, self.augment = purifier, purifier.net, data, augment
        self.levels: int = purifier.net.levels

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a batch on the CPU: x (b,C,H,W) in [0,1]."""
        x = self.data.x[torch.randint(len(self.data.x), (b,), generator=generator)]
        for change in self.augment:
            x = change(x, generator)
        return (x,)

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean loss of a batch as drawn."""
        return self.nats(batch[0]).mean()

    def nats(self, x: Tensor) -> Tensor:
        """The cross entropy of each image (B,) in nats a value."""
        weight = next(self.net.parameters())
        levels = self.purifier.quantized(x.to(weight.device))
        logits = self.net(to_pm1(self.purifier.image(levels)).to(weight.dtype))  # (B,levels,C,H,W)
        return F.cross_entropy(logits, levels, reduction="none").mean(dim=(1, 2, 3))

    @torch.no_grad()
    def judge(self, test: Subset, folder: Path, seed: int) -> dict[str, float]:
        """Nats a value of clean test images, of the same under uniform noise of the purifier's reach, and of the first
        of both after purification. A picture of these before and after.
        """
        noise = 2 * torch.rand(test.x.shape, generator=torch.Generator().manual_seed(seed)) - 1
        device = next(self.net.parameters()).device
        noised = (test.x + self.purifier.reach / (self.levels - 1) * noise).clamp(0, 1)
        rows, shown = [], []
        for name, x in (("clean", test.x.to(device)), ("noise", noised.to(device))):
            purified = self.purifier(x[:SHOWN], None, None, Streams(test.ids[:SHOWN], seed, "clean"))  # pyright: ignore[reportArgumentType]
            whole = torch.cat([self.nats(part) for part in x.split(128)]).mean().item()
            first, after = (self.nats(images).mean().item() for images in (x[:SHOWN], purified))
            rows.append((name, whole, first, after))
            shown += [x[:SHOWN], purified]
        columns = ("input", "nats", f"nats_of_{SHOWN}", f"nats_of_{SHOWN}_purified")
        write_table(folder / "judge.csv", columns, rows)
        write_images(folder / "purified.png", torch.cat(shown), columns=SHOWN)
        words = ", ".join(f"{name} {nats:.3f}" for name, nats, *_ in rows)
        console.print(f"purifier: nats a value on {len(test.x)} test images: {words}")
        return {f"nats/{name}": nats for name, nats, *_ in rows}
