"""Test subsets as tensors: one loader function per dataset; `digits` is embedded in scikit-learn's wheel."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Subset(NamedTuple):
    """Images to be judged. `ids`: (N,) int64 index in the full test set; `x`: (N,C,H,W) float32 in [0,1]; `y`: (N,)
    int64 label.
    """

    ids: Tensor
    x: Tensor
    y: Tensor

    def select(self, index: Tensor | slice) -> "Subset":
        """The images at these positions, in this order."""
        return Subset(self.ids[index], self.x[index], self.y[index])


def fixed_ids(total: int, images: int) -> np.ndarray:
    """The first `images` ids of the field's fixed 512: RandomState(0).choice(total, 512, replace=False) (methods.md
    item 48).

    A size other than 512 takes a prefix of that list, or, above 512, of the same permutation, so that subsets are
    nested.
    """
    if not 1 <= images <= total:
        raise ValueError(f"need 1 <= images <= {total} (the size of the test set), got images={images}")
    return np.random.RandomState(0).permutation(total)[:images]  # choice without replacement is a prefix of it


def digits(images: int = 512) -> Subset:
    """Embedded benchmark: the first `images` of 512 test scans from scikit-learn's `load_digits`, 1x16x16."""
    if images > 512:
        raise ValueError(
            f"need 1 <= images <= 512 (digits has 512 test images, the rest is for training), got images={images}"
        )
    return _digits().select(torch.from_numpy(fixed_ids(1797, images)))


def digits_train() -> Subset:
    """The other 1285 scans: what the embedded weights were trained on and where settings are chosen."""
    return _digits().select(torch.from_numpy(np.random.RandomState(0).permutation(1797)[512:]))


def _digits() -> Subset:
    from sklearn.datasets import load_digits  # here: it costs a second

    data: Any = load_digits()
    small = torch.from_numpy(data.images / 16.0).float().unsqueeze(1)  # (1797,1,8,8)
    x = F.interpolate(small, size=16, mode="bicubic", align_corners=False).clamp(0.0, 1.0)  # (1797,1,16,16)
    return Subset(torch.arange(len(x)), x, torch.from_numpy(data.target).long())
