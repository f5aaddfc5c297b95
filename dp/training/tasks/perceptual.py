"""Perceptual fine-tuning of a consistency model (Consistency Purification, Li et al. 2024)."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import to_01
from dp.subset import Subset
from dp.training.tasks.consistency import ConsistencyTask, draw_images, pick


class PerceptualTuning(ConsistencyTask):
    """The mean perceptual distance between f(x + s n, s) and x, with s drawn uniformly from `sigmas` (Li et al. 2024).

    Differs: the features are those of the attacked classifier, not of VGG16 at 224x224 (deviation 146: features).
    Differs: the network is told the level s, not the nearest of 18 levels (deviation 145: level of the label).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: Subset,
        *,
        teacher: Denoiser,
        classifier: Classifier,
        sigmas: Sequence[float],
    ):
        if not sigmas or min(sigmas) <= 0:
            raise ValueError(f"need sigmas > 0, got sigmas={list(sigmas)}")
        super().__init__(denoiser, data, teacher=teacher, classifier=classifier)
        self.sigmas = torch.tensor(sigmas)

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a batch on the CPU: x (b,C,H,W) in [-1,1], n (b,C,H,W), the index of the level (b,)."""
        x = draw_images(self.x, b, generator)
        n = torch.randn(x.shape, generator=generator)
        return x, n, torch.randint(len(self.sigmas), (b,), generator=generator)

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean perceptual distance of a batch as drawn. The outputs are not clamped: where they leave [0,1] the
        loss has a gradient, too.
        """
        x, n, index = batch
        x = x.to(next(self.net.parameters()))
        s = pick(self.sigmas, index, x)
        result = self.denoiser.denoise(x + s * n.to(x), s)
        return self.perceptual(to_01(result, clamp="none"), to_01(x)).float().mean()
