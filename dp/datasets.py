"""Test subsets as tensors: one loader function per dataset. `digits` comes with scikit-learn."""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dp.files.cache import cache_folder
from dp.files.packages import package_file
from dp.spelling import near_matches
from dp.subset import Subset
from dp.weights import pickle_scan as scan

DIGITS = (  # the file of scikit-learn's load_digits
    "sklearn",
    "datasets/data/digits.csv.gz",
    "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
)
IMAGENET = (1000, 50_000)  # class folders, validation images
CELEBAHQ = {"train": 24_183, "val": 2_993, "test": 2_824}  # of the 30000, by CelebA's partition
IMAGENETTE = {  # class folder: index among ImageNet's 1000
    "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497,
    "n03394916": 566, "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701,
}  # fmt: skip


def fixed_ids(total: int, images: int, every: int | None = None) -> np.ndarray:
    """The first `images` of the fixed ids that the field uses: RandomState(0).choice(total, 512, replace=False).

    See deviation 48 (which 512 images are attacked). Fewer or more than 512 ids are a prefix of the same permutation of
    the `total` ids, so that subsets are nested. `every`: the first `images` of 0, every, 2 every, ... instead, as in
    certification. Raises ValueError unless 1 <= images <= total, or for fewer ids than `images`.
    """
    if every is not None:
        ids = np.arange(0, total, every)
        if not 1 <= images <= len(ids):
            raise ValueError(f"need 1 <= images <= {len(ids)} (every {every}th of {total}), got images={images}")
        return ids[:images]
    if not 1 <= images <= total:
        raise ValueError(f"need 1 <= images <= {total}, as many as there are, got images={images}")
    return np.random.RandomState(0).permutation(total)[:images]  # choice without replacement is a prefix of it


def digits(images: int = 512) -> Subset:
    """The embedded benchmark: the first `images` of 512 test scans of scikit-learn's `load_digits`, 1x16x16.

    Raises ValueError for more than 512.
    """
    if images > 512:
        raise ValueError(
            f"need 1 <= images <= 512 (digits has 512 test images, the rest is for training), got images={images}"
        )
    return _digits().select(torch.from_numpy(fixed_ids(1797, images)))


def gray(images: int, shape: Sequence[int]) -> Subset:
    """Gray images of a shape (C,H,W), all with label 0: for what depends on the number and the size of images alone."""
    return Subset(torch.arange(images), torch.full((1, *shape), 0.5).expand(images, *shape), torch.zeros(images).long())


def digits_train() -> Subset:
    """The other 1285 scans, on which the embedded weights were trained and settings are chosen."""
    return _digits().select(torch.from_numpy(np.random.RandomState(0).permutation(1797)[512:]))


def digits_tuning(images: int = 128) -> Subset:
    """The first `images` of the scans of `digits_train`, to choose settings by: no row of a table uses them. The
    embedded networks were trained on them, so accuracies are higher than on test images.

    Raises ValueError for more than 1285.
    """
    train = digits_train()
    if not 1 <= images <= len(train.ids):
        raise ValueError(f"need 1 <= images <= {len(train.ids)} (digits has as many for training), got images={images}")
    return train.select(slice(0, images))


def cifar10(images: int, md5: str | None = None, every: int | None = None) -> Subset:
    """CIFAR-10 test images, 3x32x32, from `cifar-10-batches-py/test_batch` in the cache folder.

    `md5`: the hash of that file; None reads any file of the format. `every`: see `fixed_ids`. Raises FileNotFoundError
    where the file is missing and ValueError where it is another.
    """
    x, y = _batch(_needed("cifar-10-batches-py") / "test_batch", md5)
    ids = torch.from_numpy(fixed_ids(len(x), images, every))
    return Subset(ids, x[ids].float() / 255, y[ids])


def cifar10_train() -> Subset:
    """The 50000 training images of CIFAR-10, as published, ids 0 ... 49999."""
    from torchvision.datasets import CIFAR10  # it knows the hashes; imported here because it takes seconds

    folder = _needed("cifar-10-batches-py")
    x, y = zip(*(_batch(folder / name, md5) for name, md5 in CIFAR10.train_list), strict=True)
    return Subset(torch.arange(sum(map(len, x))), torch.cat(x).float() / 255, torch.cat(y))


def svhn(images: int, md5: str | None = None, every: int | None = None) -> Subset:
    """SVHN cropped test digits, 3x32x32, from `test_32x32.mat` in the cache folder; other keys as for `cifar10`."""
    x, y = _mat(_needed("test_32x32.mat"), md5)
    ids = torch.from_numpy(fixed_ids(len(x), images, every))
    return Subset(ids, x[ids].float() / 255, y[ids])


def svhn_train() -> Subset:
    """The 73257 training digits of SVHN, as published, ids 0 ... 73256."""
    from torchvision.datasets import SVHN

    x, y = _mat(_needed("train_32x32.mat"), SVHN.split_list["train"][2])
    return Subset(torch.arange(len(x)), x.float() / 255, y)


def imagenet(images: int, shape: str = "crop", every: int | None = None) -> Subset:
    """ImageNet validation images, 3x224x224, from `imagenet/val/<class>/` in the cache folder, classes in sorted order.

    `shape`: `crop` (short side to 256, then the center) or `squash` (both sides to 224), which the released code does
    (deviation 47: how ImageNet images are resized). `every`: see `fixed_ids`. Raises ValueError for another `shape` or
    other numbers of images.
    """
    folder = _needed("imagenet/val")
    return _folder(folder, images, shape, IMAGENET, every)


def imagenette(images: int, shape: str = "crop", every: int | None = None) -> Subset:
    """The 3925 validation images of ten ImageNet classes, 3x224x224.

    They come from `imagenette2/val/<class>/` in the cache folder. Labels are indices among ImageNet's 1000 classes, so
    that ImageNet's classifiers can be used. `shape`, `every`: as for `imagenet`.
    """
    subset = _folder(_needed("imagenette2") / "val", images, shape, (len(IMAGENETTE), 3925), every)
    return subset._replace(y=torch.tensor(list(IMAGENETTE.values()))[subset.y])


def celebahq(images: int, attribute: str, partition: str = "val", every: int | None = None) -> Subset:
    """CelebA-HQ images, 3x256x256, with label 1 where they have the attribute, else 0 (a task of DiffPure's).

    They come from `celebahq/` in the cache folder, which holds `images/` and CelebA's own `list_attr_celeba.txt` and
    `list_eval_partition.txt`. `partition`: train, val or test; ids count its images, sorted by name. Raises ValueError
    for another partition or attribute and where images or lists are not as published.
    """
    import pandas as pd
    from torchvision import transforms

    parts = tuple(CELEBAHQ)
    if partition not in parts:
        raise ValueError(f"need partition train, val or test, got partition={partition!r}")
    folder = _needed("celebahq")
    try:
        table = pd.read_csv(folder / "list_attr_celeba.txt", sep=r"\s+", skiprows=1)
        lines = (folder / "list_eval_partition.txt").read_text().split("\n")
        part = {name: dict(enumerate(parts))[int(number)] for name, number in (line.split() for line in lines if line)}
        has = {
            name: dict(zip(map(str, table.index), (table[name] > 0).astype(int).tolist(), strict=True))
            for name in table
        }
    except scan.UNREADABLE as error:
        raise ValueError(f"need CelebA's two lists in {folder} as published, got {type(error).__name__}") from None
    if attribute not in has:
        raise ValueError(f"unknown attribute {attribute}{near_matches(attribute, has)}: see list_attr_celeba.txt")
    label = has[attribute]
    paths = {path.with_suffix(".jpg").name: path for path in sorted((folder / "images").iterdir())}
    strange = [name for name in paths if name not in label or name not in part]
    if strange:
        raise ValueError(
            f"need images that CelebA's lists name in {folder}, got {len(strange)} others, e.g. {strange[0]}"
        )
    names = [name for name in paths if part[name] == partition]
    if len(names) != CELEBAHQ[partition]:  # the ids would change
        raise ValueError(f"need {CELEBAHQ[partition]} images of {partition} in {folder}/images, got {len(names)}")
    ids = fixed_ids(len(names), images, every)
    read = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(256), transforms.ToTensor()])
    x = torch.stack([_image(paths[names[i]], read) for i in ids])
    return Subset(torch.from_numpy(ids), x, torch.tensor([label[names[i]] for i in ids]))


def _needed(name: str) -> Path:
    path = cache_folder() / name
    if not path.exists():
        raise FileNotFoundError(
            f"missing data: need {path}; fetch it with `dp fetch` and the same options, or put it there by hand"
        )
    return path


def _published(path: Path, md5: str | None) -> Path:
    if not path.is_file():
        got = "a directory" if path.is_dir() else "no such file"
        raise ValueError(f"need the file {path} as published, got {got}: put it there, or fetch the data again")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    if md5 not in (None, digest):
        raise ValueError(f"need {path} as published (MD5 {md5}), got {digest}: fetch it again")
    return path


def _batch(path: Path, md5: str | None) -> tuple[Tensor, Tensor]:
    """Images (N,3,32,32) uint8 and labels (N,) of a CIFAR-10 python batch, of which nothing is executed."""
    content = scan.batch(_published(path, md5))
    data, labels = (content.get(key, content.get(key.encode())) for key in ("data", "labels"))
    if not isinstance(data, np.ndarray) or not isinstance(labels, list) or data.shape[:1] != (len(labels),):
        raise ValueError(f"need `data` and as many `labels` in the CIFAR-10 batch {path}, got other content")
    if data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise ValueError(f"need data (N,3072) uint8 in {path}, got {data.shape} {data.dtype}")
    if any(type(label) is not int or not 0 <= label < 10 for label in labels):
        raise ValueError(f"need labels 0 ... 9 beside the data in {path}, got others")
    return torch.from_numpy(data.copy()).view(-1, 3, 32, 32), torch.tensor(labels)


def _mat(path: Path, md5: str | None) -> tuple[Tensor, Tensor]:
    """Images (N,3,32,32) uint8 and labels (N,) of an SVHN file, which writes the digit 0 as 10."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    path = _published(path, md5)
    try:
        content = loadmat(path)
        data, labels = content["X"], content["y"].astype(np.int64).ravel()
    except (LookupError, TypeError, ValueError, NotImplementedError, MatReadError, OSError, zlib.error) as error:
        raise ValueError(
            f"need an SVHN file with X and y, got {path} ({type(error).__name__}): fetch it again"
        ) from None
    if data.dtype != np.uint8 or data.shape != (32, 32, 3, len(labels)):
        raise ValueError(f"need X (32,32,3,N) uint8 and N labels y in {path}, got {data.shape} and {len(labels)}")
    if labels.size and not 1 <= labels.min() <= labels.max() <= 10:
        raise ValueError(f"need labels 1 ... 10 in {path}, got {labels.min()} ... {labels.max()}")
    return torch.from_numpy(data.transpose(3, 2, 0, 1).copy()), torch.from_numpy(labels % 10)


def _folder(folder: Path, images: int, shape: str, expected: tuple[int, int], every: int | None) -> Subset:
    """Images 3x224x224 of a folder per class, labels in the classes' sorted order."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    if shape not in ("crop", "squash"):
        raise ValueError(f"need shape crop or squash, got shape={shape!r}")
    resize = {
        "crop": [transforms.Resize(256), transforms.CenterCrop(224)],
        "squash": [transforms.Resize((224, 224))],
    }[shape]
    data = ImageFolder(str(folder), transforms.Compose([*resize, transforms.ToTensor()]), allow_empty=True)
    counts = (len(data.classes), len(data))
    if counts != expected:  # ids and labels would change
        raise ValueError(
            f"need {expected[1]} images in {expected[0]} class folders of {folder}, got {counts[1]} in {counts[0]}"
        )
    ids = fixed_ids(len(data), images, every)
    x, y = zip(*(data[int(i)] for i in ids), strict=True)
    return Subset(torch.from_numpy(ids), torch.stack(x), torch.tensor(y))


def _image(path: Path, read: Callable[[Any], Any]) -> Tensor:
    try:
        with Image.open(path) as image:
            return read(image.convert("RGB"))
    except (*scan.UNREADABLE, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"need a picture, got {path} ({type(error).__name__}): put a whole one there") from None


def _digits() -> Subset:
    table = np.loadtxt(package_file(*DIGITS, "pip install scikit-learn"), delimiter=",")  # (1797,65): pixels and class
    small = torch.from_numpy(table[:, :-1].reshape(-1, 1, 8, 8) / 16.0).float()
    x = F.interpolate(small, size=16, mode="bicubic", align_corners=False).clamp(0.0, 1.0)  # (1797,1,16,16)
    return Subset(torch.arange(len(x)), x, torch.from_numpy(table[:, -1]).long())
