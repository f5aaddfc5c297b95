"""CIFAR-10, SVHN and ImageNet from files of the true formats, made here."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from dp import datasets
from dp.datasets import fixed_ids


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DP_CACHE", str(tmp_path))
    return tmp_path


def test_cifar10(cache, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = cache / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    data, labels = rng.integers(0, 256, (40, 3072), dtype=np.uint8), rng.integers(0, 10, 40).tolist()
    (folder / "test_batch").write_bytes(pickle.dumps({"data": data, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    subset = datasets.cifar10(7)
    ids = fixed_ids(40, 7)
    assert subset.ids.tolist() == ids.tolist()
    assert subset.y.tolist() == [labels[i] for i in ids]
    planes = data[ids].reshape(7, 3, 32, 32)  # the format keeps red, green and blue planes
    assert torch.equal((subset.x * 255).round().to(torch.uint8), torch.from_numpy(planes))
    assert subset.x.dtype == torch.float32


def test_svhn(cache, monkeypatch):
    rng = np.random.default_rng(0)
    data, labels = rng.integers(0, 256, (32, 32, 3, 30), dtype=np.uint8), rng.integers(1, 11, (30, 1))
    savemat(cache / "test_32x32.mat", {"X": data, "y": labels})
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    subset = datasets.svhn(5)
    ids = fixed_ids(30, 5)
    assert subset.ids.tolist() == ids.tolist()
    assert subset.y.tolist() == [int(labels[i, 0]) % 10 for i in ids]  # SVHN writes the digit 0 as 10
    assert torch.equal((subset.x[1] * 255).round().byte(), torch.from_numpy(data[..., ids[1]]).permute(2, 0, 1))


@pytest.mark.parametrize("shape", ["crop", "squash"])
def test_imagenet(cache, shape, monkeypatch):
    """A wide image with a white middle: the crop sees white only, the squash also the black sides."""
    for k, name in enumerate(("n01", "n02", "n03")):
        (cache / "imagenet" / "val" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.zeros((256, 768, 3), dtype=np.uint8)
            pixels[:, 256:512] = 255
            pixels[:, :, 2] = k
            Image.fromarray(pixels).save(cache / "imagenet" / "val" / name / f"{i}.png")
    with pytest.raises(ValueError, match=r"need 50000 images in 1000 class folders .* got 12 in 3"):
        datasets.imagenet(6, shape)
    monkeypatch.setattr(datasets, "IMAGENET", (3, 12))
    subset = datasets.imagenet(6, shape)
    ids = fixed_ids(12, 6)
    assert subset.ids.tolist() == ids.tolist()
    assert subset.y.tolist() == [i // 4 for i in ids]  # classes in sorted order
    assert subset.x.shape == (6, 3, 224, 224)
    share = subset.x[:, 0].mean().item()
    assert share == pytest.approx(1.0 if shape == "crop" else 1 / 3, abs=0.01)
    with pytest.raises(ValueError, match="crop or squash"):
        datasets.imagenet(1, "stretch")


@pytest.mark.parametrize(
    ("load", "name"),
    [(datasets.cifar10, "cifar-10-batches-py"), (datasets.svhn, "test_32x32.mat"), (datasets.imagenet, "val")],
)
def test_missing_data_says_what_and_where(load, name, cache):
    with pytest.raises(FileNotFoundError) as caught:
        load(512)
    said = str(caught.value)
    assert "\n" not in said
    assert name in said
    assert str(cache) in said


def test_files_that_are_not_the_published_ones(cache):
    (cache / "cifar-10-batches-py").mkdir()
    (cache / "test_32x32.mat").write_bytes(b"<html>")
    for load, name in ((datasets.cifar10, "cifar-10-batches-py"), (datasets.svhn, "test_32x32.mat")):
        with pytest.raises(ValueError, match=f"{name} as published"):
            load(4)
