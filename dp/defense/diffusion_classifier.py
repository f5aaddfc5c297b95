"""Diffusion classifier (Chen et al. 2023): the class whose conditional denoising error is least.

By Bayes' rule with equal priors, logits are log p(x | c) up to a constant that all classes share. With the weight
1 / sigma^3 they are the variational bound, which is tight for an exact denoiser:
log p(x | c) = constant - int E|D(x0 + sigma n, sigma, c) - x0|^2 / sigma^3 dsigma.
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from dp.classifiers import RandomizedClassifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import to_pm1
from dp.rng import Streams


def likelihood(sigma: float) -> float:
    """The weight 1 / sigma^3 of the variational bound, for squared errors that are summed over pixels."""
    return sigma**-3


def training_loss(sigma: float, *, p_mean: float, p_std: float, sigma_data: float) -> float:
    """EDM's training loss as a weight: (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 times the density of sigma.

    ln sigma ~ N(p_mean, p_std^2) (Karras et al. 2022, Table 1). So the released code weights the levels, see
    deviation 90 (the weights of the noise levels).
    """
    density = math.exp(-((math.log(sigma) - p_mean) ** 2) / (2 * p_std**2)) / (sigma * p_std * math.sqrt(2 * math.pi))
    return density * (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


class DiffusionClassifier(RandomizedClassifier):
    """logits_c = -1 / temperature * sum over levels of w(sigma) dsigma |D(x0 + sigma n, sigma, c) - x0|^2, x0 = 2x - 1.

    `denoiser`: class-conditional, of K classes. `sigma_min`, `sigma_max`, `levels`: the interval of sigma is cut into
    `levels` parts, of equal length or, with `spacing` log, of equal ratio, and the level is the lower end of each.
    `weight`: w(sigma). `temperature`: of the softmax; it changes no decision of a single sample.
    Each level has one n, which all classes share (the paper's variance reduction). One call asks the denoiser
    K x `levels` times per image.
    Raises ValueError for a denoiser without classes and for values outside these ranges.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sigma_min: float,
        sigma_max: float,
        levels: int,
        weight: Callable[[float], float],
        spacing: str = "linear",
        temperature: float = 1.0,
    ):
        if not denoiser.classes:
            raise ValueError("need a denoiser with classes for a diffusion classifier, got one without: choose another")
        if not 0 < sigma_min < sigma_max or levels < 1 or temperature <= 0:
            raise ValueError(
                "need 0 < sigma_min < sigma_max, levels >= 1 and temperature > 0, got "
                f"sigma_min={sigma_min}, sigma_max={sigma_max}, levels={levels}, temperature={temperature}"
            )
        if spacing not in ("linear", "log"):
            raise ValueError(f"need spacing linear or log, got spacing={spacing!r}")
        super().__init__(denoiser, size=denoiser.size)
        self.denoiser = denoiser
        self.temperature = temperature
        ends = torch.linspace(0, 1, levels + 1, dtype=torch.float64)
        if spacing == "linear":
            ends = sigma_min + (sigma_max - sigma_min) * ends
        else:
            ends = sigma_min * (sigma_max / sigma_min) ** ends
        self.sigmas = ends[:-1].tolist()
        self.weights = [weight(sigma) * width for sigma, width in zip(self.sigmas, ends.diff().tolist(), strict=True)]
        self.evaluations = denoiser.classes * levels

    def brief(self) -> Self:
        """The same with its first level alone."""
        twin = copy.copy(self)
        twin.sigmas, twin.weights, twin.evaluations = self.sigmas[:1], self.weights[:1], self.denoiser.classes
        return twin

    def sample(self, x: Tensor, rng: Streams) -> Tensor:
        if self.size is not None and x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        x0, total = to_pm1(x), x.new_zeros(len(x), self.denoiser.classes)
        for sigma, weight in zip(self.sigmas, self.weights, strict=True):
            # Differs: the code shares it in the prediction alone (deviation 93: shared noise in the gradient).
            z = x0 + sigma * rng.randn_like(x0)  # one noise for all classes
            total = total + weight * torch.stack(list(self._errors(z, x0, sigma)), dim=1)
        return -total / self.temperature

    def _errors(self, z: Tensor, x0: Tensor, sigma: float) -> Iterator[Tensor]:
        """|D(z, sigma, c) - x0|^2, (B,), for each class c."""
        for c in range(self.denoiser.classes):
            label = torch.full((len(z),), c, device=z.device)
            yield (self.denoiser(z, sigma, label) - x0).square().sum(dim=(1, 2, 3))
