"""Denoising: the training of diffusion models."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from dp.diffusion.denoisers import EDM, Denoiser, EpsNet
from dp.diffusion.sampling import LEVELS, ancestral_step, time_grid, to_01, to_pm1, vp_sigmas
from dp.output.console import console
from dp.subset import Subset
from dp.training.augment import Augment
from dp.training.outputs import write_images, write_table
from dp.training.task import Task

TIMES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)  # noise times at which the judge evaluates


class Denoising(Task):
    """Denoising: the mean of weight(sigma) (D(x + sigma n; sigma) - x)^2 over images x in [-1,1].

    Images are drawn with replacement. For an `EDM` adapter ln sigma ~ N(p_mean, p_std^2), and the weight is
    (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022, Table 1); `clamp`: bounds of sigma, or None.
    For an `EpsNet` sigma belongs to a uniform index
    of the linear schedule, and the weight is 1 / sigma^2, so that the loss is |eps - n|^2 (Ho et al. 2020, Eq. 14).
    A network with classes is given the class of each image; with probability `label_dropout` it is given none, so that
    it also learns to denoise without a class (Ho and Salimans 2022, Alg. 1).
    `samples`: time `t` and number of `steps` of the images that the judge generates; None generates none.
    Raises ValueError for another adapter, and for a `label_dropout` outside [0,1) or of a network without classes.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: Subset,
        *,
        augment: Sequence[Augment] = (),
        p_mean: float,
        p_std: float,
        clamp: Sequence[float] | None,
        label_dropout: float = 0.0,
        samples: Mapping[str, Any] | None = None,
    ):
        if not 0 <= label_dropout < 1 or (label_dropout and not denoiser.classes):
            raise ValueError(
                f"need 0 <= label_dropout < 1, and 0 for a network without classes, got label_dropout={label_dropout}"
            )
        if not isinstance(denoiser, EDM | EpsNet):
            raise ValueError(
                f"need an EDM or EpsNet adapter to train in, got {type(denoiser).__name__}: choose another"
            )
        self.denoiser, self.net = denoiser, denoiser.net
        self.x, self.y, self.augment = to_pm1(data.x), data.y, augment
        self.label_dropout = label_dropout
        self.p_mean, self.p_std, self.clamp = p_mean, p_std, clamp
        self.samples = samples

    def levels(self, b: int, generator: Generator) -> Tensor:
        """Random noise levels (b,1,1,1)."""
        if isinstance(self.denoiser, EpsNet):
            return vp_sigmas()[torch.randint(LEVELS, (b,), generator=generator)].float().view(-1, 1, 1, 1)
        sigma = torch.exp(self.p_mean + self.p_std * torch.randn(b, 1, 1, 1, generator=generator))
        return sigma if self.clamp is None else sigma.clamp(*self.clamp)

    def weight(self, sigma: Tensor) -> Tensor:
        """Weight of a squared error at this noise level, of sigma's shape."""
        if isinstance(self.denoiser, EpsNet):
            return 1 / sigma**2
        sigma_data = self.denoiser.sigma_data
        return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a batch on the CPU: x (b,C,H,W), sigma (b,1,1,1), n (b,C,H,W), and for a network with classes their
        labels (b,), -1 for no class.
        """
        index = torch.randint(len(self.x), (b,), generator=generator)
        x = self.x[index]
        for change in self.augment:
            x = change(x, generator)
        batch = x, self.levels(b, generator), torch.randn(x.shape, generator=generator)
        if not self.denoiser.classes:
            return batch
        dropped = torch.rand(b, generator=generator) < self.label_dropout
        return *batch, self.y[index].masked_fill(dropped, -1)

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean loss of a batch as drawn."""
        x, sigma, n, *labels = batch
        device = next(self.net.parameters()).device
        x, weight = x.to(device), self.weight(sigma).to(device)
        z = x + sigma.to(device) * n.to(device)
        return (weight * (self.denoiser.denoise(z, sigma, *labels) - x) ** 2).mean()

    def judge(self, test: Subset, folder: Path, seed: int) -> dict[str, float]:
        """The loss at each of `TIMES`, as judge.csv, and generated images, as samples.png."""
        losses = held_out(self, test, TIMES, seed)
        write_table(folder / "judge.csv", ("sigma", "loss"), losses.items())
        words = ", ".join(f"{loss:.3f} at {sigma:.3g}" for sigma, loss in losses.items())
        console.print(f"denoiser: loss on {len(test.x)} test images by sigma: {words}")
        if self.samples:
            x = samples(self.denoiser, (64, *test.x.shape[1:]), **self.samples, seed=seed)
            write_images(folder / "samples.png", to_01(x))
        return {f"loss/sigma={sigma:.4g}": loss for sigma, loss in losses.items()}


@torch.no_grad()
def held_out(task: Denoising, data: Subset, times: Sequence[float], seed: int, batch: int = 128) -> dict[float, float]:
    """{sigma(t): mean loss of the images at that level} for each time t, with seeded noise, and with the images' labels
    if the network takes them.
    """
    losses = {}
    for t in times:
        generator, sigma = torch.Generator().manual_seed(seed), task.denoiser.sigma(t)
        sums = []
        for x, y in zip(to_pm1(data.x).split(batch), data.y.split(batch), strict=True):
            noise = torch.full((len(x), 1, 1, 1), sigma), torch.randn(x.shape, generator=generator)
            sums.append(task.loss(x, *noise, *([y] if task.denoiser.classes else [])) * len(x))
        losses[sigma] = (torch.stack(sums).sum() / len(data.x)).item()
    return losses


@torch.no_grad()
def samples(denoiser: Denoiser, shape: Sequence[int], *, t: float, steps: int, seed: int) -> Tensor:
    """Generate images of `shape` (B,C,H,W), in about [-1,1], from noise at time t by DDIM steps. A denoiser with
    classes is asked for them in turn.
    """
    device = next(denoiser.parameters()).device
    label = torch.arange(shape[0], device=device) % denoiser.classes if denoiser.classes else None
    sigmas = [*(denoiser.sigma(u) for u in time_grid(t, steps)[:-1]), 0.0]
    z = sigmas[0] * torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)).to(device)
    for sigma, sigma_next in pairwise(sigmas):
        z = ancestral_step(z, denoiser(z, sigma, label), sigma, sigma_next, None, eta=0.0)
    return z.cpu()
