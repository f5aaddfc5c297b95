"""What the two stages of a consistency model share: the adapter, and a judge that sets it beside the posterior mean."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Consistency, Denoiser
from dp.diffusion.sampling import to_01, to_pm1
from dp.output.console import console
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.perceptual import Perceptual
from dp.training.outputs import write_images, write_table
from dp.training.task import Task

SIGMAS = (0.1, 0.25, 0.5, 0.724, 1.0, 2.0, 5.0)  # noise levels of the judge; 0.724 is that of t = 0.2
SHOWN = 1.0  # the level of the picture
STAGE = "judge"  # of the judge's noise


class ConsistencyTask(Task):
    """Trains the network of a `Consistency` adapter. The judge compares it with `teacher`, a posterior mean, by the
    decisions and the features of `classifier`.

    Raises ValueError for an adapter of another kind.
    """

    def __init__(self, denoiser: Denoiser, data: Subset, *, teacher: Denoiser, classifier: Classifier):
        if not isinstance(denoiser, Consistency):
            raise ValueError(f"need a Consistency adapter to train in, got {type(denoiser).__name__}: choose another")
        self.denoiser, self.net = denoiser, denoiser.net
        self.x, self.teacher, self.classifier = to_pm1(data.x), teacher, classifier
        self.perceptual = Perceptual(classifier)

    @torch.no_grad()
    def judge(self, test: Subset, folder: Path, seed: int) -> dict[str, float]:
        """Mean squared error in [-1,1], accuracy in percent and perceptual distance of one call on noisy test images,
        for each of `SIGMAS` and for the posterior mean as well. The picture has rows of noisy images, their posterior
        means, and the results of the model.
        """
        columns, rows, figures = ("error", "accuracy", "perceptual"), [], {}
        for k, sigma in enumerate(SIGMAS):
            rng = Streams(test.ids, seed, STAGE).draw(k)
            x0 = to_pm1(test.x)
            z = x0 + sigma * rng.randn_like(x0)
            means, results = (outputs(model, z, sigma) for model in (self.teacher, self.denoiser))
            if sigma == SHOWN:
                write_images(folder / "denoised.png", to_01(torch.cat([z[:8], means[:8], results[:8]])))
            values = [*self.figures(means, test), *self.figures(results, test)]
            rows.append((sigma, *values))
            figures |= {f"{name}/sigma={sigma:g}": value for name, value in zip(columns, values[3:], strict=True)}
        header = ("sigma", *(f"posterior_mean_{name}" for name in columns), *columns)
        write_table(folder / "judge.csv", header, rows)
        words = ", ".join(f"{row[5]:.1f} ({row[2]:.1f}) at {row[0]:g}" for row in rows)
        console.print(f"consistency: accuracy on {len(test.x)} noisy test images (posterior mean) by sigma: {words}")
        return figures

    def figures(self, x0: Tensor, test: Subset) -> list[float]:
        """Error, accuracy and perceptual distance of outputs x0 (N,C,H,W), about in [-1,1], on the CPU."""
        error = (x0 - to_pm1(test.x)).square().mean().item()
        device, right, distance = next(self.net.parameters()).device, 0, 0.0
        for part in torch.arange(len(x0)).split(128):
            x_hat, x = to_01(x0[part]).to(device), test.x[part].to(device)
            right += (self.classifier(x_hat).argmax(1).cpu() == test.y[part]).sum().item()
            distance += self.perceptual(x_hat, x).sum().item()
        return [error, 100 * right / len(x0), distance / len(x0)]


def outputs(denoiser: Denoiser, z: Tensor, sigma: float, batch: int = 128) -> Tensor:
    """One call for each of z (N,C,H,W) at noise level sigma; on the CPU."""
    device = next(denoiser.parameters()).device
    return torch.cat([denoiser(part.to(device), sigma).cpu() for part in z.split(batch)])


def draw_images(x: Tensor, b: int, generator: torch.Generator) -> Tensor:
    """`b` of the images x (N,C,H,W), with replacement."""
    return x[torch.randint(len(x), (b,), generator=generator)]


def pick(levels: Tensor | Sequence[float], index: Tensor, like: Tensor) -> Tensor:
    """levels[index] as (b,1,1,1), of the dtype and on the device of `like`."""
    return torch.as_tensor(levels)[index.cpu()].to(like).view(-1, 1, 1, 1)
