"""PixelDefend (Song et al. 2018, arXiv 1710.10766): greedy decoding of an autoregressive model near the image.

It has no gradient: every value is an argmax.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import OnStep, to_pm1
from dp.purifiers.module import PurifierModule
from dp.rng import Streams


class PixelDefend(PurifierModule):
    """Puts the most probable of the levels within `reach` of its own in place of every value (paper, Algorithm 1).

    The values come one after another, row by row, red before green before blue, each given those that were already
    replaced. `net`: a `dp.nets.masked_conv.MaskedConvNet`; its `at` gives the logits of one pixel. `reach`: the
    paper's eps_defend, in levels. NFE = C H W: one call for each value, on the part of the image that matters to it.
    Raises ValueError for a negative reach.
    """

    def __init__(self, net: Any, reach: int):
        super().__init__()
        if reach < 0:
            raise ValueError(f"need reach >= 0, got reach={reach}")
        self.net, self.reach = net, reach

    def forward(
        self,
        x: Tensor,
        denoiser: Denoiser | None,
        classifier: Classifier,
        rng: Streams,
        *,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """x (B,C,H,W) in [0,1] -> x_hat in [0,1], at levels. It draws no noise, and `on_step` is never called."""
        given = self.quantized(x)
        low, high = given - self.reach, given + self.reach
        steps = torch.arange(self.net.levels, device=x.device)
        out = self.image(given).to(x.dtype)
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                for k in range(x.shape[1]):
                    logits = self.evaluate(functools.partial(self.net.at, i=i, j=j), to_pm1(out))[:, :, k]  # (B,levels)
                    box = (steps >= low[:, k, i, j, None]) & (steps <= high[:, k, i, j, None])
                    out[:, k, i, j] = self.image(logits.masked_fill(~box, -torch.inf).argmax(dim=1)).to(out)
        return out.to(x.dtype)

    def quantized(self, x: Tensor) -> Tensor:
        """The levels (B,C,H,W) int64 of images in [0,1], rounded down as in the released code (deviation 134:
        truncation).
        """
        top = self.net.levels - 1
        return (x.detach().double() * top + 1e-4).floor().long().clamp(0, top)  # a level in float32 stays what it is

    def image(self, levels: Tensor) -> Tensor:
        """Levels (B,C,H,W) as images in [0,1]."""
        return levels.double() / (self.net.levels - 1)
