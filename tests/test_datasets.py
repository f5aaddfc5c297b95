"""The fixed subset of the field, and the embedded digits."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dp.contracts import dataset as contract
from dp.datasets import digits, digits_train, fixed_ids
from dp.runs.compose import make
from dp.subset import Subset
from dp.threat_models.ball import parse_eps
from tests.helpers.compose import composed, loadable, on_its_dataset
from tests.helpers.contract import assert_held, in_one_line


@pytest.mark.parametrize("name", loadable("dataset"))
def test_contract(name, record_property):
    """Shapes, types and range of the images; the same images every time; bounds that are numbers."""
    config = composed(*on_its_dataset("dataset", name))
    with in_one_line(f"dataset {name}"):
        subset, again = (make(config["dataset"]["loader"], modules=config["plugins"]["modules"]) for _ in range(2))
        assert all(parse_eps(config["dataset"]["eps"][norm]) > 0 for norm in ("linf", "l2"))
    assert_held(contract.failures(subset, again, images=4), "dataset", config, record_property)


@pytest.fixture(scope="module")
def held_out():
    return digits()


@pytest.fixture(scope="module")
def train_set():
    return digits_train()


@pytest.fixture(scope="module")
def scans():
    return load_digits()


@pytest.mark.parametrize(
    ("total", "first"),
    [(10_000, [9394, 898, 2398, 5906, 2343]), (50_000, [11841, 19602, 45519]), (26_032, [19703, 18995, 7804])],
    ids=["cifar10", "imagenet", "svhn"],
)
def test_first_ids_of_the_official_subset(total, first):
    assert fixed_ids(total, 512)[: len(first)].tolist() == first


@pytest.mark.parametrize("total", [512, 1797, 10_000, 26_032])
def test_the_official_512(total):
    assert np.array_equal(fixed_ids(total, 512), np.random.RandomState(0).choice(total, 512, replace=False))


@pytest.mark.parametrize(("total", "images"), [(10_000, 1), (10_000, 64), (10_000, 2000), (600, 600)])
def test_subsets_are_nested_and_without_repetition(total, images):
    ids = fixed_ids(total, images)
    assert len(ids) == images
    assert len(set(ids.tolist())) == images
    assert ids.min() >= 0
    assert ids.max() < total
    smaller, larger = sorted((images, 512))
    assert np.array_equal(fixed_ids(total, larger)[:smaller], fixed_ids(total, smaller))


@pytest.mark.parametrize("images", [0, -1, 10_001])
def test_more_images_than_there_are(images):
    with pytest.raises(ValueError, match="10000"):
        fixed_ids(10_000, images)


@pytest.mark.parametrize("images", [0, -1, 513, 1797])
def test_digits_has_512_test_images(images):
    with pytest.raises(ValueError, match="need 1 <= images"):
        digits(images)


def test_digits_shapes_types_and_range(held_out, train_set):
    for subset, n in ((held_out, 512), (train_set, 1285)):
        assert subset.x.shape == (n, 1, 16, 16)
        assert subset.ids.shape == subset.y.shape == (n,)
        assert (subset.x.dtype, subset.ids.dtype, subset.y.dtype) == (torch.float32, torch.int64, torch.int64)
        assert subset.x.min() == 0
        assert subset.x.max() == 1
        assert set(subset.y.tolist()) == set(range(10))


def test_train_and_test_are_disjoint_and_complete(held_out, train_set):
    test, train = set(held_out.ids.tolist()), set(train_set.ids.tolist())
    assert not test & train
    assert test | train == set(range(1797))


@pytest.mark.parametrize("images", [1, 5, 64])
def test_digits_subsets_are_nested(held_out, images):
    for part, whole in zip(digits(images), held_out, strict=True):
        assert torch.equal(part, whole[:images])


def test_labels_belong_to_their_scans(held_out, train_set, scans):
    for subset in (held_out, train_set):
        assert np.array_equal(subset.y.numpy(), scans.target[subset.ids.numpy()])


def keys(d, a=-0.75):
    """Keys' cubic kernel (1981), with the parameter that torch, OpenCV and browsers use."""
    d = abs(d)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def enlargement(n, m):
    """(m,n) cubic interpolation at half-pixel centers, borders repeated."""
    matrix = np.zeros((m, n))
    for row in range(m):
        at = (row + 0.5) * n / m - 0.5
        for i in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            matrix[row, min(max(i, 0), n - 1)] += keys(at - i)
    return matrix


def test_enlarging_is_bicubic(held_out, train_set, scans):
    matrix = enlargement(8, 16)
    for subset in (held_out, train_set):
        small = scans.images[subset.ids.numpy()] / 16
        expected = (matrix @ small @ matrix.T).clip(0, 1)
        np.testing.assert_allclose(subset.x[:, 0].numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("index", [torch.tensor([3, 1]), slice(1, 4)])
def test_select(index):
    subset = Subset(torch.arange(5) + 10, torch.rand(5, 1, 2, 2), torch.arange(5))
    chosen = subset.select(index)
    at = [3, 1] if isinstance(index, torch.Tensor) else [1, 2, 3]
    assert chosen.ids.tolist() == [10 + i for i in at]
    assert chosen.y.tolist() == at
    assert torch.equal(chosen.x, torch.stack([subset.x[i] for i in at]))


def test_digits_are_read_without_libraries_that_take_long_to_import():
    code = "import sys, dp.datasets as d; d.digits(2); print(sorted({'sklearn', 'pandas', 'scipy'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
