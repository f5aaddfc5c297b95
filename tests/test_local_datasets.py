"""CIFAR-10, SVHN and ImageNet from files of the true formats, made here."""

import functools
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from dp import datasets
from dp.datasets import fixed_ids
from tests.helpers.compose import composed
from tests.helpers.formats import cifar10


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DP_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar10(cache, protocol):
    data, labels = cifar10(cache, 40, protocol=protocol)
    subset = datasets.cifar10(7)
    ids = fixed_ids(40, 7)
    assert subset.ids.tolist() == ids.tolist()
    assert subset.y.tolist() == [labels[i] for i in ids]
    planes = data[ids].reshape(7, 3, 32, 32)  # the format keeps red, green and blue planes
    assert torch.equal((subset.x * 255).round().to(torch.uint8), torch.from_numpy(planes))
    assert subset.x.dtype == torch.float32


def test_cifar10_is_what_torchvision_reads(cache, monkeypatch):
    from torchvision.datasets import CIFAR10

    cifar10(cache, 12)
    (cache / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}))
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    data = CIFAR10(str(cache), train=False)
    subset = datasets.cifar10(12)
    for i, x, y in zip(subset.ids.tolist(), subset.x, subset.y.tolist(), strict=True):
        assert torch.equal((x * 255).round().byte().permute(1, 2, 0), torch.from_numpy(data.data[i]))
        assert y == data.targets[i]


def test_cifar10_train(cache, monkeypatch):
    from torchvision.datasets import CIFAR10

    data, labels = cifar10(cache, 6)
    folder, names = cache / "cifar-10-batches-py", ["data_batch_1", "data_batch_2"]
    for name in names:
        (folder / name).write_bytes((folder / "test_batch").read_bytes())
    with pytest.raises(ValueError, match="as published"):
        datasets.cifar10_train()
    monkeypatch.setattr(CIFAR10, "train_list", [[name, None] for name in names])
    subset = datasets.cifar10_train()
    assert subset.ids.tolist() == list(range(12))
    assert subset.y.tolist() == labels * 2
    assert torch.equal(subset.x[6:].flatten(1), torch.from_numpy(data).float() / 255)


def test_the_yaml_holds_torchvisions_hashes():
    from torchvision.datasets import CIFAR10, SVHN

    assert composed("dataset=cifar10")["dataset"]["loader"]["md5"] == CIFAR10.test_list[0][1]
    assert composed("dataset=svhn")["dataset"]["loader"]["md5"] == SVHN.split_list["test"][2]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_in_a_batch_is_executed(cache, protocol):
    cifar10(cache, 4)
    evil = pickle.dumps({"data": Payload(cache / "touched"), "labels": []}, protocol=protocol)
    (cache / "cifar-10-batches-py" / "test_batch").write_bytes(evil)
    with pytest.raises(ValueError, match="nothing was executed") as error:
        datasets.cifar10(4)
    assert "\n" not in str(error.value)
    assert not (cache / "touched").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"data": np.zeros((4, 3072), np.uint8), "labels": [1, 2, 3]},
        {"data": np.zeros((4, 3072), np.float32), "labels": [1, 2, 3, 4]},
        {"data": np.zeros((4, 1024), np.uint8), "labels": [1, 2, 3, 4]},
        {"data": np.zeros((4, 3072), np.uint8), "labels": [1, 2, 3, 10]},
        {"data": np.zeros((4, 3072), np.uint8), "labels": [1, 2, 3, "cat"]},
        {"data": np.zeros((), np.uint8), "labels": []},
        {"labels": [1]},
        [1, 2],
    ],
)
def test_batches_of_another_content(cache, content):
    (cache / "cifar-10-batches-py").mkdir()
    (cache / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"need .*(data|uint8|dictionary|bytes)"):
        datasets.cifar10(2)


def svhn_file(path, images=30):
    rng = np.random.default_rng(0)
    data, labels = rng.integers(0, 256, (32, 32, 3, images), dtype=np.uint8), rng.integers(1, 11, (images, 1))
    savemat(path, {"X": data, "y": labels.astype(np.uint8)})
    return data, labels


def test_svhn(cache):
    data, labels = svhn_file(cache / "test_32x32.mat")
    subset = datasets.svhn(5)
    ids = fixed_ids(30, 5)
    assert subset.ids.tolist() == ids.tolist()
    assert subset.y.tolist() == [int(labels[i, 0]) % 10 for i in ids]  # SVHN writes the digit 0 as 10
    assert torch.equal((subset.x[1] * 255).round().byte(), torch.from_numpy(data[..., ids[1]]).permute(2, 0, 1))


def test_svhn_train(cache, monkeypatch):
    from torchvision.datasets import SVHN

    _, labels = svhn_file(cache / "train_32x32.mat")
    with pytest.raises(ValueError, match="as published"):
        datasets.svhn_train()
    monkeypatch.setitem(SVHN.split_list, "train", ["", "train_32x32.mat", None])
    subset = datasets.svhn_train()
    assert subset.x.shape == (30, 3, 32, 32)
    assert subset.y.tolist() == (labels.ravel() % 10).tolist()


@pytest.mark.parametrize(
    "content",
    [
        {"X": np.zeros((32, 32, 3, 2), np.uint8)},
        {"y": 1},
        {"X": np.zeros(3), "y": 1},
        {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[0], [11]]},
    ],
)
def test_svhn_files_of_another_content(cache, content):
    savemat(cache / "test_32x32.mat", content)
    with pytest.raises(ValueError, match="need"):
        datasets.svhn(1)


def test_a_torn_svhn_file(cache):
    savemat(cache / "test_32x32.mat", {"X": np.ones((32, 32, 3, 2), np.uint8), "y": [[1], [2]]}, do_compression=True)
    whole = (cache / "test_32x32.mat").read_bytes()
    for size in (100, 150, len(whole) // 2, len(whole) - 5):
        for torn in (whole[:size], whole[:size] + b"\xff" * (len(whole) - size)):
            (cache / "test_32x32.mat").write_bytes(torn)
            with pytest.raises(ValueError, match=r"need .*test_32x32\.mat") as error:
                datasets.svhn(1)
            assert "\n" not in str(error.value)


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


def pictures(folder, names, side=256):
    """A picture per name, each of one gray."""
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((side, side, 3), 10 * k, dtype=np.uint8)).save(folder / name)


def test_imagenette_labels_are_imagenets(cache, monkeypatch):
    """The index of a class folder among ImageNet's 1000, from torchvision's own list of class names."""
    from torchvision.models import ResNet50_Weights

    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    words = (
        "tench|English springer|cassette player|chain saw|church|French horn|garbage truck|gas pump|golf ball|parachute"
    )
    assert [names[i] for i in datasets.IMAGENETTE.values()] == words.split("|")
    pictures(cache / "imagenette2" / "val", [f"{wnid}/{i}.png" for wnid in datasets.IMAGENETTE for i in range(2)])
    with pytest.raises(ValueError, match="need 3925 images in 10 class folders"):
        datasets.imagenette(3)
    monkeypatch.setattr(datasets, "_folder", functools.partial(any_count, datasets._folder))
    subset = datasets.imagenette(20)
    assert subset.x.shape == (20, 3, 224, 224)
    for i, y in zip(subset.ids.tolist(), subset.y.tolist(), strict=True):
        assert y == list(datasets.IMAGENETTE.values())[i // 2]


def any_count(read, folder, images, shape, expected, *more):
    return read(folder, images, shape, (expected[0], 20), *more)


def test_celebahq(cache, monkeypatch):
    folder = cache / "celebahq"
    names = [f"{i:06d}" for i in (7, 3, 12, 5, 9)]
    pictures(folder / "images", [f"{name}.png" for name in sorted(names)])
    rows = [f"{n}.jpg {(-1) ** int(n)} {1 if int(n) > 6 else -1}" for n in [*names, "000001"]]
    (folder / "list_attr_celeba.txt").write_text("\n".join(["6", "Eyeglasses  Smiling", *rows]) + "\n")
    part = {"000003": 1, "000005": 0, "000007": 1, "000009": 2, "000012": 1, "000001": 1}
    (folder / "list_eval_partition.txt").write_text("".join(f"{n}.jpg {p}\n" for n, p in part.items()))
    with pytest.raises(ValueError, match=r"need 2993 images of val in .*images, got 3"):
        datasets.celebahq(3, "Smiling")
    monkeypatch.setattr(datasets, "CELEBAHQ", {"train": 1, "val": 3, "test": 1})
    subset = datasets.celebahq(3, "Smiling")
    ids = fixed_ids(3, 3)  # of 000003, 000007, 000012
    assert subset.ids.tolist() == ids.tolist()
    assert subset.y.tolist() == [[0, 1, 1][i] for i in ids]
    assert (subset.x[:, 0, 0, 0] * 255).round().tolist() == [[0, 20, 40][i] for i in ids]
    assert subset.x.shape == (3, 3, 256, 256)
    assert datasets.celebahq(1, "Eyeglasses", "test").y.tolist() == [0]
    with pytest.raises(ValueError, match=r"unknown attribute Smilling \(did you mean Smiling"):
        datasets.celebahq(3, "Smilling")
    with pytest.raises(ValueError, match="need partition train, val or test"):
        datasets.celebahq(3, "Smiling", "all")
    pictures(folder / "images", ["999999.png"])
    with pytest.raises(ValueError, match=r"got 1 others, e\.g\. 999999\.jpg"):
        datasets.celebahq(3, "Smiling")


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
    with pytest.raises(ValueError, match="test_batch as published, got no such file"):
        datasets.cifar10(4)
    cifar10(cache, 4)
    (cache / "test_32x32.mat").write_bytes(b"<html>")
    for load, name in ((datasets.cifar10, "test_batch"), (datasets.svhn, "test_32x32.mat")):
        with pytest.raises(ValueError, match=f"{name} as published"):
            load(4, md5="0" * 32)
    with pytest.raises(ValueError, match="need an SVHN file"):
        datasets.svhn(4)
