"""Test subsets as tensors: one loader function per dataset; `digits` is embedded in scikit-learn's wheel."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dp.cache import cache_folder

IMAGENET = (1000, 50_000)  # class folders, validation images


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


def cifar10(images: int) -> Subset:
    """CIFAR-10 test images, 3x32x32, from `cifar-10-batches-py/` in the cache folder."""
    from torchvision.datasets import CIFAR10  # here: it costs seconds

    folder = _needed("cifar-10-batches-py", "the CIFAR-10 python batches (170 MB), www.cs.toronto.edu/~kriz/cifar.html")
    data = _intact(folder, lambda: CIFAR10(str(folder.parent), train=False, download=False))
    ids = torch.from_numpy(fixed_ids(len(data), images))
    x = torch.from_numpy(data.data).permute(0, 3, 1, 2)[ids].float() / 255
    return Subset(ids, x, torch.tensor(data.targets)[ids])


def svhn(images: int) -> Subset:
    """SVHN test images, 3x32x32, from `test_32x32.mat` in the cache folder."""
    from torchvision.datasets import SVHN

    file = _needed("test_32x32.mat", "the SVHN cropped test digits (64 MB), ufldl.stanford.edu/housenumbers")
    data = _intact(file, lambda: SVHN(str(file.parent), split="test", download=False))
    ids = torch.from_numpy(fixed_ids(len(data.data), images))
    return Subset(ids, torch.from_numpy(data.data)[ids].float() / 255, torch.from_numpy(data.labels).long()[ids])


def imagenet(images: int, shape: str = "crop") -> Subset:
    """ImageNet validation images, 3x224x224, from `imagenet/val/<class>/` in the cache folder, classes in sorted order.

    `shape`: `crop` (short side to 256, then the centre) or `squash` (both sides to 224, as the official code; item 47).
    """
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    if shape not in ("crop", "squash"):
        raise ValueError(f"need shape crop or squash, got shape={shape!r}")
    resize = {
        "crop": [transforms.Resize(256), transforms.CenterCrop(224)],
        "squash": [transforms.Resize((224, 224))],
    }[shape]
    folder = _needed("imagenet/val", "the 50000 ImageNet validation images in a folder per class, image-net.org")
    data = ImageFolder(str(folder), transforms.Compose([*resize, transforms.ToTensor()]), allow_empty=True)
    found = (len(data.classes), len(data))
    if found != IMAGENET:  # other ids and labels would follow
        raise ValueError(
            f"need {IMAGENET[1]} images in {IMAGENET[0]} class folders of {folder}, got {found[1]} in {found[0]}"
        )
    ids = fixed_ids(len(data), images)
    x, y = zip(*(data[int(i)] for i in ids), strict=True)
    return Subset(torch.from_numpy(ids), torch.stack(x), torch.tensor(y))


def _needed(name: str, what: str) -> Path:
    path = cache_folder() / name
    if not path.exists():
        raise FileNotFoundError(f"missing data: need {what}, as {path} (or set DP_CACHE to the folder that has it)")
    return path


def _intact(path: Path, read: Callable[[], Any]) -> Any:
    """What torchvision reads; it compares every file with its published MD5 first."""
    try:
        return read()
    except RuntimeError:
        raise ValueError(f"need {path} as published, got missing or other files in it: fetch it again") from None


def _digits() -> Subset:
    from sklearn.datasets import load_digits  # here: it costs a second

    data: Any = load_digits()
    small = torch.from_numpy(data.images / 16.0).float().unsqueeze(1)  # (1797,1,8,8)
    x = F.interpolate(small, size=16, mode="bicubic", align_corners=False).clamp(0.0, 1.0)  # (1797,1,16,16)
    return Subset(torch.arange(len(x)), x, torch.from_numpy(data.target).long())
