"""Subset: the images of a run with their labels and ids."""

from typing import NamedTuple

from torch import Tensor


class Subset(NamedTuple):
    """Images with their labels.

    `ids`: (N,) int64, index in the full test set. `x`: (N,C,H,W) float32 in [0,1]. `y`: (N,) int64, label.
    """

    ids: Tensor
    x: Tensor
    y: Tensor

    def select(self, index: Tensor | slice) -> "Subset":
        """The images at these positions of the subset, in this order."""
        return Subset(self.ids[index], self.x[index], self.y[index])
