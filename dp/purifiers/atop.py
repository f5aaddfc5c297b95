"""AToP (Lin et al. 2024, arXiv 2401.16352): random transforms destroy the perturbation, and a generator repairs them.

The generator is an inpainting network that is tuned with the classifier's loss on attacked images.
"""

import math

import torch
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import OnStep, to_01, to_pm1
from dp.purifiers.module import PurifierModule
from dp.rng import Streams

TRANSFORMS = ("rt1", "rt2", "rt3")


class Atop(PurifierModule):
    """Masks random blocks, and takes what the network makes of the rest. NFE = 1, for rt3 the number of masks.

    `net`: takes (B,C+1,H,W), images in [-1,1] with zeros where they are masked, and the mask, and a label (1,), to the
    same shape; its first C channels are used. `transform` (paper, Sec. 3.2): `rt1` masks the share `missing` of the
    blocks of `block` x `block` pixels; `rt2` adds Gaussian noise of standard deviation `noise`, of images in [0,1],
    before it; `rt3` does so with 1 / missing masks that leave no pixel out, and each pass gives the pixels that it did
    not see. The result of rt1 and rt2 is the whole output of the network, as in the released code.
    `clamp`: the last clamp to [0,1], see `to_01`. Raises ValueError for values outside these ranges.
    """

    def __init__(self, net: nn.Module, transform: str, noise: float, missing: float, block: int, clamp: str = "plain"):
        super().__init__()
        if transform not in TRANSFORMS or noise < 0 or not 0 < missing < 1 or block < 1:
            raise ValueError(
                f"need transform among {', '.join(TRANSFORMS)}, noise >= 0, 0 < missing < 1 and block >= 1, got "
                f"{transform=}, {noise=}, {missing=}, {block=}"
            )
        self.net, self.transform, self.missing, self.block, self.clamp = net, transform, missing, block, clamp
        self.noise = noise if transform == "rt2" else 0.0
        self.masks = math.ceil(1 / missing - 1e-9) if transform == "rt3" else 1

    def forward(
        self,
        x: Tensor,
        denoiser: Denoiser | None,
        classifier: Classifier,
        rng: Streams,
        *,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """x (B,C,H,W) in [0,1] -> x_hat in [0,1], H and W multiples of `block`, else ValueError.

        `on_step` is never called.
        """
        place, *n = self.practice(x, rng)
        if self.masks == 1:
            return to_01(to_pm1(self.attempt(x, place, *n)[0]), self.clamp)
        out = torch.zeros_like(x)
        for i in range(self.masks):
            hidden = (place >= i * self.missing) & (place < (i + 1) * self.missing)
            out = torch.where(hidden, self._repaired(to_pm1(x), hidden), out)
        return to_01(out, self.clamp)

    def practice(self, x: Tensor, rng: Streams) -> tuple[Tensor, ...]:
        """What is drawn for images x (B,C,H,W): the places (B,1,H,W) in [0,1) of the blocks in a random order, and for
        rt2 the noise (B,C,H,W).
        """
        if any(side % self.block for side in x.shape[2:]):
            found = f"images of {x.shape[2]}x{x.shape[3]}"
            raise ValueError(f"need sides that are multiples of block={self.block}, got {found}")
        h, w = (side // self.block for side in x.shape[2:])
        order = rng.uniform_like(x.new_empty(len(x), h * w)).argsort(dim=1).argsort(dim=1)
        place = (order.to(x) / (h * w)).view(-1, 1, h, w)
        place = place.repeat_interleave(self.block, 2).repeat_interleave(self.block, 3)
        return (place, rng.randn_like(x)) if self.noise else (place,)

    def attempt(self, x: Tensor, place: Tensor, n: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One pass over images x (B,C,H,W) in [0,1]: the result, in [0,1] but not clamped, and where it counts."""
        noised = x if n is None else x + self.noise * n
        out = self._repaired(to_pm1(noised), place < self.missing)
        return (out + 1) / 2, torch.ones_like(place, dtype=torch.bool)

    def _repaired(self, image: Tensor, hidden: Tensor) -> Tensor:
        """What the network makes of images (B,C,H,W) in [-1,1] without their hidden pixels."""
        mask, label = hidden.to(image), image.new_zeros(1)
        seen = image * (1 - mask)
        return self.evaluate(lambda seen: self.net(torch.cat([seen, mask.to(seen)], dim=1), label)[:, :-1], seen)
