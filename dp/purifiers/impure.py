"""IMPure (Liu et al. 2023): each patch is rebuilt from the others, so that none can keep its own perturbation.

The released code is NoWindButRain/IMPure, commit 72f3edc. `ImpureTransformer` is its form, `Impure` ours for small
images.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import LEVELS, OnStep, beside, to_01, to_pm1, vp_sigma, vp_sigmas
from dp.purifiers.module import PurifierModule
from dp.rng import Streams


class ImpureTransformer(PurifierModule):
    """The published form: a masked autoencoder that is a vision transformer. One pass is one network evaluation.

    `net`: a `dp.nets.impure_vit.ImpureViT`. `mean`, `std`: of its images, per channel. `image_level`,
    `feature_level`: indices of the 1000-level schedule: the noise of the images whose features stand in for those of a
    chunk's own patches, and the noise that is added to these features. `clamp`: the last clamp to [0,1], see `to_01`.
    Noise and order of the patches are random at test as in training, as in the released code.
    Raises ValueError for another level.
    """

    def __init__(
        self,
        net: Any,
        mean: Sequence[float],
        std: Sequence[float],
        image_level: int,
        feature_level: int,
        clamp: str = "plain",
    ):
        super().__init__()
        self.net, self.clamp = net, clamp
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.image_abar, self.feature_abar = _abar(image_level), _abar(feature_level)

    def forward(
        self,
        x: Tensor,
        denoiser: Denoiser | None,
        classifier: Classifier,
        rng: Streams,
        *,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """x (B,3,H,W) in [0,1] -> x_hat in [0,1]. `on_step` is never called."""
        normal, net = (x - self.mean) / self.std, self.net
        order = rng.uniform_like(x.new_empty(len(x), net.tokens)).argsort(dim=1)
        n, one = rng.randn_like(normal), x.new_empty(len(x), net.tokens // net.chunks, net.decoder_width)
        features = math.sqrt(1 - self.feature_abar) * torch.stack([rng.randn_like(one) for _ in range(net.chunks)])

        def rebuilt(normal: Tensor) -> Tensor:
            noised = math.sqrt(self.image_abar) * normal + math.sqrt(1 - self.image_abar) * n
            return net(normal, noised.to(normal), order, math.sqrt(self.feature_abar), features.to(normal))

        out = self.evaluate(rebuilt, normal) * self.std + self.mean
        return to_01(to_pm1(out), self.clamp)


class Impure(PurifierModule):
    """The same idea with a convolutional network (deviation 128: a convolutional form). NFE = chunks.

    The patches are dealt to `chunks` groups at random. For each group, the network sees the image with the group's
    pixels noised and a mask of them, and what it makes of these pixels is the result. `net`: takes (B,C+1,H,W), images
    in [-1,1] and the mask, and a noise label (1,), to the same shape; its first C channels are used. `patch`: side in
    pixels. `level`: index of the 1000-level schedule, the noise of a group's own pixels; `levels`: [low, high] of it in
    training. `clamp`: the last clamp, see `to_01`. Raises ValueError for values outside these ranges.
    """

    def __init__(
        self, net: nn.Module, patch: int, chunks: int, level: int, levels: Sequence[int], clamp: str = "plain"
    ):
        super().__init__()
        if patch < 1 or chunks < 2 or not 0 <= levels[0] <= levels[1] < LEVELS:
            found = f"patch={patch}, chunks={chunks}, levels={list(levels)}"
            raise ValueError(f"need patch >= 1, chunks >= 2 and 0 <= low <= high < {LEVELS} as levels, got {found}")
        _abar(level)
        self.net, self.patch, self.chunks, self.level, self.levels = net, patch, chunks, level, [*levels]
        self.clamp = clamp

    def forward(
        self,
        x: Tensor,
        denoiser: Denoiser | None,
        classifier: Classifier,
        rng: Streams,
        *,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """x (B,C,H,W) in [0,1] -> x_hat in [0,1], H and W multiples of `patch`, else ValueError.

        `on_step(i, sigma, z, x0)` is called for each group, with the image in which its pixels are noised.
        """
        group, n, out = self._groups(x, rng), rng.randn_like(x), torch.zeros_like(x)
        level = vp_sigmas()[self.level].to(x.dtype).item()
        sigma = beside(x, level)
        for i in range(self.chunks):
            own = group == i
            z, x0 = self._rebuilt(to_pm1(x), own, n, sigma)
            if on_step is not None:
                on_step(i, level, z, x0)
            out = torch.where(own, x0, out)
        return to_01(out, self.clamp)

    def practice(self, x: Tensor, rng: Streams) -> tuple[Tensor, ...]:
        """What training draws for images x (B,C,H,W): the pixels of one group (B,1,H,W) bool, the noise level of each
        image (B,1,1,1), and the noise (B,C,H,W).
        """
        low, high = self.levels
        index = low + (rng.uniform_like(x[:, :1, :1, :1]) * (high + 1 - low)).long().clamp(max=high - low)
        return self._groups(x, rng) == 0, vp_sigmas().to(x)[index.cpu()].to(x), rng.randn_like(x)

    def attempt(self, x: Tensor, own: Tensor, sigma: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """The images x (B,C,H,W) with one group rebuilt, in [0,1] but not clamped, and the group's pixels."""
        return torch.where(own, (self._rebuilt(to_pm1(x), own, n, sigma)[1] + 1) / 2, x), own

    def _groups(self, x: Tensor, rng: Streams) -> Tensor:
        """The number of each pixel's group, (B,1,H,W): the patches in random order, cut into equal runs."""
        h, w = (side // self.patch for side in x.shape[2:])
        if any(side % self.patch for side in x.shape[2:]) or (h * w) % self.chunks:
            raise ValueError(
                f"need sides that are multiples of patch={self.patch} and {self.chunks} equal groups of patches, got "
                f"images of {x.shape[2]}x{x.shape[3]}"
            )
        place = rng.uniform_like(x.new_empty(len(x), h * w)).argsort(dim=1).argsort(dim=1)
        group = (place // (h * w // self.chunks)).view(-1, 1, h, w)
        return group.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)

    def _rebuilt(self, image: Tensor, own: Tensor, n: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The images (B,C,H,W) in [-1,1] with their own pixels noised to sigma (1 or B,1,1,1), and what the network
        makes of them.
        """
        z = torch.where(own, (image + sigma * n) / (1 + sigma**2).sqrt(), image)
        mask, label = own.to(image), sigma.flatten().log() / 4  # c_noise of Karras et al. 2022
        out = self.evaluate(lambda z: self.net(torch.cat([z, mask.to(z)], dim=1), label)[:, :-1], z)
        return z, out


def _abar(level: int) -> float:
    if not 0 <= level < LEVELS:
        raise ValueError(f"need a level from 0 to {LEVELS - 1}, got {level}")
    return 1 / (1 + vp_sigma(level / LEVELS) ** 2)
