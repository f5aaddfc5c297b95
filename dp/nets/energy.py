"""The convolutional energy of Hill et al. 2021, with the tensor names of their weights (point0bar1/ebm-defense)."""

import torch
from torch import Tensor, nn

from dp.nets.backward import Conv2d


class EnergyNet(nn.Module):
    """(B,channels,size,size) in [-1,1] -> energies (B,). A low energy means a likely image.

    A convolution of `width` channels, then one of stride 2 and twice the channels for each halving of `size` down to 4,
    then one that makes a number of the 4x4 that are left. `size`: 4, 8, 16, ..., else ValueError. `leak`: the slope of
    LeakyReLU between them, with which the energy is piecewise linear; None for SiLU, which is smooth.
    """

    def __init__(self, channels: int = 3, width: int = 32, size: int = 32, leak: float | None = 0.05):
        halvings = size.bit_length() - 3
        if halvings < 0 or 4 << halvings != size:
            raise ValueError(f"need a size of 4, 8, 16, ..., got size={size}")
        super().__init__()
        layers: list[nn.Module] = [Conv2d(channels, width, 3, padding=1)]
        for i in range(halvings):
            layers += [_activation(leak), Conv2d(width << i, width << (i + 1), 4, stride=2, padding=1)]
        self.f = nn.Sequential(*layers, _activation(leak), Conv2d(width << halvings, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(self.f(x), dim=(1, 2, 3))


def _activation(leak: float | None) -> nn.Module:
    return nn.SiLU() if leak is None else nn.LeakyReLU(leak)
