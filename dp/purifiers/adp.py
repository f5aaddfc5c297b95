"""Adaptive denoising purification, ADP (Yoon et al. 2021): noise, then ascent along the score with a step size that
each image chooses for itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import OnStep, clip_01, to_pm1
from dp.purifiers.module import PurifierModule
from dp.rng import Streams


class Adp(PurifierModule):
    """Purify x (B,C,H,W) in [0,1] by ADP and return x_hat in [0,1]. NFE = 2 steps. No denoiser is used.

    `net`: the score times the noise level, as a function of images in [0,1].
    `pixel_sigma`: of the noise, for images in [0,1]. `steps`: how many, at most; an image that is frozen earlier stays
    as it is.
    `probe`: length of the trial step along the score; `lam`: share of the step size at which the score of a quadratic
    energy would vanish; `bounds`: least and largest step size; `stop`: an image whose step size is not above it is
    frozen for good.
    `on_step(i, sigma, z, x0)` is called after every step with 2 pixel_sigma, the image before and the image after it,
    both in [-1,1].
    Raises ValueError for values outside these ranges: pixel_sigma >= 0, steps >= 1, probe and lam > 0, and
    0 < bounds[0] <= bounds[1].
    """

    def __init__(
        self,
        net: nn.Module,
        pixel_sigma: float,
        steps: int,
        probe: float,
        lam: float,
        bounds: Sequence[float],
        stop: float,
    ):
        if pixel_sigma < 0 or steps < 1 or probe <= 0 or lam <= 0:
            given = f"pixel_sigma={pixel_sigma}, steps={steps}, probe={probe}, lam={lam}"
            raise ValueError(f"need pixel_sigma >= 0, steps >= 1, probe and lam > 0, got {given}")
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise ValueError(f"need bounds as the least and the largest step size, both > 0, got bounds={bounds}")
        super().__init__()
        self.net = net
        self.pixel_sigma, self.steps, self.probe, self.lam, self.stop = pixel_sigma, steps, probe, lam, stop
        self.least, self.largest = bounds

    def forward(
        self,
        x: Tensor,
        denoiser: Denoiser | None,
        classifier: Classifier,
        rng: Streams,
        *,
        on_step: OnStep | None = None,
    ) -> Tensor:
        v = clip_01(x + self.pixel_sigma * rng.randn_like(x)) * (255 / 256) + 1 / 512  # into the middle of 8-bit cells
        alive = torch.ones(len(x), 1, 1, 1, dtype=torch.bool, device=x.device)
        for i in range(self.steps):
            score = self.evaluate(self.net, v)
            size = self.step_size(score, self.evaluate(self.net, v + self.probe * score))
            alive = alive & (size > self.stop)
            # The original's inverse of the map above, which it applies after every step.
            ascended = clip_01((v + size * score) * (256 / 255) - 1 / 510)
            # Differs (deviation 114: frozen images): the original maps them on, as long as another image moves.
            after = torch.where(alive, ascended, v)
            if on_step is not None:
                on_step(i, 2 * self.pixel_sigma, to_pm1(v), to_pm1(after))
            v = after
        return v

    def step_size(self, score: Tensor, ahead: Tensor) -> Tensor:
        """lam probe / (1 - r) within the bounds, (B,1,1,1), with r = <score, ahead> / <score, score>.

        `score`, `ahead`: (B,C,H,W), at the image and at the end of the trial step. A score that does not fall along
        itself has the least step size, as the bounds of the original give it.
        """
        norm = score.square().sum(dim=(1, 2, 3), keepdim=True)
        fall = (score * (score - ahead)).sum(dim=(1, 2, 3), keepdim=True)
        scale = self.lam * self.probe
        falling = (norm > 0) & (fall > 0)
        # Bounded before the division, so that no infinite slope meets a zero in the backward pass.
        drop = torch.where(falling, fall, 1.0) / torch.where(falling, norm, 1.0)
        size = scale / drop.clamp(scale / self.largest, scale / self.least)
        return torch.where(falling, size, self.least)
