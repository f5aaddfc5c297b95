"""Noise for training from one generator, with the methods that purifiers ask of their streams."""

import torch
from torch import Generator, Tensor


class Drawn:
    """Draws from a torch generator on the CPU, for all images of a batch at once."""

    def __init__(self, generator: Generator):
        self.generator = generator

    def randn_like(self, z: Tensor) -> Tensor:
        """Unit Gaussian noise of z's shape and dtype."""
        return torch.randn(z.shape, generator=self.generator, dtype=z.dtype)

    def uniform_like(self, x: Tensor) -> Tensor:
        """Uniform numbers in [0,1) of x's shape and dtype."""
        return torch.rand(x.shape, generator=self.generator, dtype=x.dtype)
