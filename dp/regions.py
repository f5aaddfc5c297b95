"""Where the object of a known image lies: the box of the nearest clean test image. For experiments alone."""

import functools

import torch
from torch import Tensor

from dp.canvas import held_out
from dp.transfer import sent

KNOWN = ("canvas",)  # datasets whose images come with boxes


class Boxes:
    """The boxes of clean images `x` (N,C,H,W) in [0,1], each with a box (N,4): its first row and column and its last
    ones plus 1.
    """

    def __init__(self, x: Tensor, box: Tensor):
        row, column = (torch.arange(side) for side in x.shape[2:])
        top, left, bottom, right = (v.view(-1, 1) for v in box.long().T)
        rows, columns = ((row >= top) & (row < bottom), (column >= left) & (column < right))  # (N,H), (N,W)
        self.x, self.masks = x.flatten(1), (rows.unsqueeze(2) & columns.unsqueeze(1)).float().unsqueeze(1)
        self.shape, self.squares = tuple(x.shape[1:]), self.x.square().sum(dim=1)

    def __call__(self, x: Tensor) -> Tensor:
        """(B,1,H,W): 1 in the box of the clean image that is nearest in l2 to each of x (B,C,H,W), else 0. No gradient.

        A perturbation shorter than half of the distance between two clean images cannot change the box. Raises
        ValueError for images of another size.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"need images of the size {self.shape} of those with boxes, got {tuple(x.shape[1:])}")
        found = x.detach().float().flatten(1)
        if self.x.device != found.device:
            self.x, self.masks, self.squares = (sent(v, found.device) for v in (self.x, self.masks, self.squares))
        far = self.squares - 2 * found @ self.x.T  # (B,N) squared distance, but for |x|^2
        return self.masks[far.argmin(dim=1)].to(x.dtype)


@functools.cache
def boxes(dataset: str, p: float = 0.0) -> Boxes:
    """The boxes of the 512 test images of `canvas`. `p`: as in `dp.canvas.held_out`.

    Raises ValueError for a dataset whose boxes are not known.
    """
    if dataset not in KNOWN:
        raise ValueError(f"need dataset={' or '.join(KNOWN)}, whose images come with boxes, got dataset={dataset}")
    images = held_out(p)
    return Boxes(images.subset(len(images.image)).x, torch.from_numpy(images.box))
