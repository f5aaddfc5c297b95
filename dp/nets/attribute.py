"""A binary attribute classifier for CelebA-HQ in the layout of StyleGAN's discriminator (Karras et al. 2019).

The tensor names are those of the networks that DiffPure is evaluated with.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.nets.backward import Conv2d, affine


class AttributeNet(nn.Module):
    """(B,3,R,R) in [-1,1], R = resolution, a power of two from 8 on (else ValueError) -> (B,2) logits (l, -l).

    Class 1 means that the image has the attribute; it is predicted where l is negative.
    """

    def __init__(self, resolution: int = 256, fmap_base: int = 8192, fmap_max: int = 512):
        levels = resolution.bit_length() - 1
        if levels < 3 or 2**levels != resolution:
            raise ValueError(f"need a resolution that is a power of two from 8 on, got {resolution}")
        super().__init__()
        width = [min(fmap_base >> level, fmap_max) for level in range(levels)]
        self.lod_in: Tensor
        self.register_buffer("lod_in", torch.zeros((), dtype=torch.float64))  # the files hold it; it has no effect
        self.fromrgb_lod0 = nn.Module()
        self.fromrgb_lod0.add_module("conv", _Scaled(Conv2d(3, width[-1], 1, bias=False)))
        for level in range(levels, 2, -1):
            self.add_module(f"{2**level}x{2**level}", _Down(width[level - 1], width[level - 2]))
        self.add_module("4x4", _Head(width[1], width[0]))
        self.names = [f"{2**level}x{2**level}" for level in range(levels, 1, -1)]

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.fromrgb_lod0.get_submodule("conv")(x), 0.2)
        for name in self.names:
            x = self.get_submodule(name)(x)
        return torch.cat([x, -x], dim=1)


class _Bias(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.b = nn.Parameter(torch.zeros(size))


class _Scaled(nn.Module):
    """A layer whose output is multiplied by gain / sqrt(fan-in) before its bias (equalized learning rate)."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, gain: float = math.sqrt(2)):
        super().__init__()
        nn.init.normal_(layer.weight)
        self.add_module("linear" if isinstance(layer, nn.Linear) else "conv", layer)
        self.layer = "linear" if isinstance(layer, nn.Linear) else "conv"
        self.wscale = _Bias(layer.weight.shape[0])
        self.scale = gain / math.sqrt(layer.weight[0].numel())

    def forward(self, x: Tensor) -> Tensor:
        out = self.get_submodule(self.layer)(x) * self.scale
        return out + (self.wscale.b[:, None, None] if out.ndim == 4 else self.wscale.b)


class _Down(nn.Module):
    """Two convolutions, then the 2x2 mean before the last activation."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv0 = _Scaled(Conv2d(c_in, c_in, 3, padding=1, bias=False))
        self.conv1 = _Scaled(Conv2d(c_in, c_out, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv0(x), 0.2)
        return F.leaky_relu(affine(F.avg_pool2d, self.conv1(x), 2), 0.2)


class _Head(nn.Module):
    """A convolution and two linear layers on the last 4x4 features -> (B,1)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.conv = _Scaled(Conv2d(width, width, 3, padding=1, bias=False))
        self.dense0 = _Scaled(nn.Linear(16 * width, hidden, bias=False))
        self.dense1 = _Scaled(nn.Linear(hidden, 1, bias=False), gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv(x), 0.2).flatten(1)
        return self.dense1(F.leaky_relu(self.dense0(x), 0.2))
