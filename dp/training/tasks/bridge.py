"""Fine-tuning of a denoiser as a diffusion bridge from attacked to clean images, ADBM (Li et al. 2025)."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import to_01, to_pm1
from dp.output.console import console
from dp.rng import Streams
from dp.subset import Subset
from dp.training.augment import Augment
from dp.training.outputs import write_images, write_table
from dp.training.task import Task

BATCH = 128  # of the judge
JUDGED = (0.05, 0.1, 0.15, 0.2)  # times of the judge


class Bridge(Task):
    """The mean of (D(z; sigma) - x)^2 / sigma^2 on the bridge z = x + sigma n + (sigma / sigma_T)^2 d, x in [-1,1].

    d is the attack on x. At the level sigma_T of time T the bridge is the noised attacked image, and at 0 the clean
    image. In the paper's state z / sqrt(1 + sigma^2) this is its Eq. 8, and the loss its error of the predicted noise.
    `times`: T is uniform between these two, for each image, and the time of sigma uniform between `first` and T.
    `radius`: of the attack, linf for images in [0,1]. `attack_steps` sign steps of this size raise the cross entropy
    of `classifier` at D(z; sigma), with the same noise and times.
    `plain`: a denoiser that the judge compares with.
    Raises ValueError unless 0 < first < times[0] <= times[1] <= 1, radius > 0 and attack_steps >= 0.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: Subset,
        *,
        times: Sequence[float],
        first: float,
        radius: float,
        attack_steps: int,
        classifier: Classifier,
        plain: Denoiser,
        augment: Sequence[Augment] = (),
    ):
        if len(times) != 2 or not 0 < first < times[0] <= times[1] <= 1 or radius <= 0 or attack_steps < 0:
            given = f"first={first}, times={times}, radius={radius}, attack_steps={attack_steps}"
            raise ValueError(
                f"need 0 < first < times[0] <= times[1] <= 1, radius > 0 and attack_steps >= 0, got {given}"
            )
        self.denoiser, self.net, self.classifier, self.plain = denoiser, denoiser.net, classifier, plain
        self.x, self.y, self.augment = to_pm1(data.x), data.y, augment
        self.times, self.first, self.radius, self.attack_steps = times, first, 2 * radius, attack_steps

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a batch on the CPU: x (b,C,H,W) in [-1,1], labels (b,), sigma and sigma_T (b,1,1,1), n (b,C,H,W), and
        where the attack starts (b,C,H,W).
        """
        index = torch.randint(len(self.x), (b,), generator=generator)
        x = self.x[index]
        for change in self.augment:
            x = change(x, generator)
        ends = self.times[0] + (self.times[1] - self.times[0]) * torch.rand(b, generator=generator)
        times = self.first + (ends - self.first) * torch.rand(b, generator=generator)
        sigma, sigma_end = (self.levels(t) for t in (times, ends))
        n = torch.randn(x.shape, generator=generator)
        return x, self.y[index], sigma, sigma_end, n, self.radius * (2 * torch.rand(x.shape, generator=generator) - 1)

    def levels(self, times: Tensor) -> Tensor:
        """The noise levels (b,1,1,1) of times (b,)."""
        return torch.tensor([self.denoiser.sigma(t) for t in times.tolist()]).view(-1, 1, 1, 1)

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean loss of a batch as drawn."""
        device = next(self.net.parameters()).device
        x, y, sigma, sigma_end, n, start = (part.to(device) for part in batch)
        share = (sigma / sigma_end) ** 2
        d = self.attack(self.denoiser, x + sigma * n, sigma, share, x, y, start)
        x0 = self.denoiser.denoise(x + sigma * n + share * d, sigma)
        return ((x0 - x) / sigma).square().mean()

    @torch.enable_grad()
    def attack(
        self, denoiser: Denoiser, z: Tensor, sigma: Tensor, share: Tensor, x: Tensor, y: Tensor, d: Tensor
    ) -> Tensor:
        """The attack (B,C,H,W) on x: sign steps from d, along the gradient through the denoiser at z + share d."""
        for _ in range(self.attack_steps):
            leaf = d.detach().requires_grad_()
            x0 = denoiser.denoise(z + share * leaf, sigma)
            (gradient,) = torch.autograd.grad(F.cross_entropy(self.classifier(to_01(x0, "none")), y), leaf)
            d = (d + self.radius * gradient.sign()).clamp(-self.radius, self.radius)
            d = (x + d).clamp(-1, 1) - x
        return d.detach()

    @torch.no_grad()
    def judge(self, test: Subset, folder: Path, seed: int) -> dict[str, float]:
        """By noise level: the accuracy at D(z; sigma) of clean and of attacked test images, z with the whole attack,
        and the mean square error of D; of the trained denoiser and of `plain`. Each is attacked through itself.
        """
        rows, figures = [], {}
        for name, denoiser in (("bridge", self.denoiser), ("plain", self.plain)):
            for t in JUDGED:
                sigma = denoiser.sigma(t)
                row = self._judged(denoiser, test, sigma, seed, folder / f"{name}_{t:g}.png")
                rows.append((name, sigma, *row))
                figures[f"{name}/attacked/sigma={sigma:.4g}"] = row[1]
        columns = ("denoiser", "sigma", "clean", "attacked", "error_clean", "error_attacked")
        write_table(folder / "judge.csv", columns, rows)
        words = ", ".join(f"{row[2]:.1f} and {row[3]:.1f} at {row[1]:.3g} ({row[0]})" for row in rows)
        console.print(f"bridge: % of {len(test.x)} test images, clean and attacked, one denoising: {words}")
        return figures

    def _judged(
        self, denoiser: Denoiser, test: Subset, sigma: float, seed: int, picture: Path
    ) -> tuple[float, float, float, float]:
        """Accuracy in percent of clean and attacked images after one denoising, and its error. Writes a picture of
        eight: clean, attacked with noise, denoised.
        """
        device, sums, level = next(self.net.parameters()).device, torch.zeros(4), torch.tensor(sigma).view(1, 1, 1, 1)
        for x, y, ids in zip(test.x.split(BATCH), test.y.split(BATCH), test.ids.split(BATCH), strict=True):
            x, y, rng = to_pm1(x).to(device), y.to(device), Streams(ids, seed, "judge")
            z, whole = x + sigma * rng.randn_like(x), torch.ones(1, 1, 1, 1, device=device)
            start = self.radius * (2 * rng.uniform_like(x) - 1)
            attacked = z + self.attack(denoiser, z, level.to(device), whole, x, y, start)
            found = [denoiser.denoise(state, sigma) for state in (z, attacked)]
            right = [(self.classifier(to_01(x0)).argmax(1) == y).sum() for x0 in found]
            errors = [(x0 - x).square().mean(dim=(1, 2, 3)).sum() for x0 in found]
            if not sums.any():
                write_images(picture, to_01(torch.cat([x[:8], attacked[:8], found[1][:8]])))
            sums += torch.stack([*right, *errors]).cpu()
        clean, broken, error, error_attacked = (sums / len(test.x)).tolist()
        return 100 * clean, 100 * broken, error, error_attacked
