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


def in_own_types(subset: Subset) -> Subset:
    """A loader's images as float32, and its ids and labels as int64. Raises ValueError for labels that are floats."""
    ids, x, y = subset
    if y.is_floating_point():
        raise ValueError(f"need labels as whole numbers, got a loader's labels of {y.dtype}")
    return Subset(ids.long(), x.float(), y.long())
