"""Figures of images and of their features: what `figure_data.py` measures with the embedded networks.

The attack is PGD through the exact gradient of each defense. Features are the classifier's last tap, in the mean over
its places. The embedded digits stand for CIFAR-10 and ImageNet, and `canvas` is shown where a picture tells more.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import gaussian_kde
from torch import Tensor, nn

from dp.attacks.pgd_eot import PGD
from dp.classifiers import Classifier
from dp.datasets import digits
from dp.defense.defended import Defended
from dp.evaluation.stages import Stage
from dp.purifiers import hetero
from dp.purifiers.attention_mask import attention_maps
from dp.rng import Streams
from dp.runs import compose
from dp.runs.build import build
from dp.runs.caveats import bound
from dp.statistics.intervals import bootstrap
from dp.subset import Subset

METHODS = {  # of Figures 4, 6 and 9
    "DiffPure, t = 0.2": ("purifier=diffpure", "purifier.eta=1.0", "purifier.t=0.2"),
    "DiffPure, t = 0.4": ("purifier=diffpure", "purifier.eta=1.0", "purifier.t=0.4"),
    "Lee and Kim": ("purifier=lee_kim",),
    "hetero": ("purifier=hetero",),
}
SEED, ITERATIONS, EOT = 2024, 10, 4
IMAGES, BACKGROUND, SAMPLES = 32, 256, 4  # images that are attacked; images whose features are shown; samples of each
PATHS = (0, 1, 4)  # the images whose paths are shown
GRID = 48  # points of a side of a density
SIDE, PLACES = 16, slice(8, 24)  # of the hole in a canvas
HOLES, HOLE_STEPS, HOLE_TIME, HOLE_END = 24, 16, 0.8, 0.05
JUMPS = (1, 5, 10, 20)
ABOUT = f"digits, linf 32/255, PGD {ITERATIONS} x EOT {EOT} through each defense's exact gradient, {IMAGES} images"


class Attacked(NamedTuple):
    """A defense, images, and what an attack made of them, x_adv (B,C,H,W) in [0,1]."""

    model: Defended
    images: Subset
    x_adv: Tensor


@functools.cache
def attacked(name: str, dataset: str = "digits", images: int = IMAGES) -> Attacked:
    """A defense of `METHODS` with its attacked images."""
    evaluation = build(compose.composed(f"dataset={dataset}", *METHODS[name], f"protocol.images={images}"))
    model, (ids, x, y), threat = evaluation.arms["defended"].scored, evaluation.subset, evaluation.threat
    attack, rng = PGD(ITERATIONS, EOT, select="last"), Streams(ids.tolist(), SEED, Stage.ATTACK)
    state = attack.start(model, x, y, threat, rng.draw(0))
    for i in range(attack.steps):
        state = attack.step(model, state, x, y, threat, rng.draw(1 + i))
    return Attacked(model, evaluation.subset, threat.admit(state, x)[0].detach())


def pooled(classifier: Classifier, x: Tensor) -> Tensor:
    """The features (B,C) of images (B,C,H,W) in [0,1]."""
    with torch.no_grad():
        return classifier.features(x)[-1].mean(dim=(2, 3))


def purified(model: Defended, x: Tensor, ids: Tensor, stage: str, samples: int = SAMPLES) -> Tensor:
    """Purified samples (samples,B,C,H,W) of images x."""
    rng = Streams(ids.tolist(), SEED, stage)
    with torch.no_grad():
        return torch.stack([model.purify(x, rng.draw(k)) for k in range(samples)])


@functools.cache
def features(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features of the original images (B,C), and of purified clean and attacked ones (samples,B,C)."""
    model, (ids, x, _), x_adv = attacked(name)
    sides = [
        torch.stack([pooled(model.classifier, one) for one in purified(model, given, ids, stage)])
        for given, stage in ((x, Stage.CLEAN), (x_adv, Stage.ADV))
    ]
    return pooled(model.classifier, x), sides[0], sides[1]


def bytes_of(x: Tensor) -> np.ndarray:
    """Images (B,C,H,W) in [0,1] as bytes (B,H,W,3)."""
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def states(model: Defended, x: Tensor, rng: Streams) -> list[tuple[float, Tensor, Tensor]]:
    """(sigma, z, x0) of every step of a purification, and at the end (0, x_hat, x_hat) in [-1,1]."""
    seen: list[tuple[float, Tensor, Tensor]] = []
    with torch.no_grad():
        x_hat = model.purify(x, rng, on_step=lambda i, sigma, z, x0: seen.append((float(sigma), z, x0)))
    return [*seen, (0.0, 2 * x_hat - 1, 2 * x_hat - 1)]


def strip(one: Attacked, x: Tensor) -> tuple[np.ndarray, list[str]]:
    """The pictures (B,6,H,W,3) of images x, and the words below each image's first, fourth and last one."""
    model, images, _ = one
    settings, seen = bound(model.purifier), states(model, x, Streams(images.ids.tolist(), SEED, Stage.CLEAN))
    with torch.no_grad():
        maps = attention_maps(model.classifier.features(x), (x.shape[2], x.shape[3]), settings["phi"])
        mask = hetero.strong_pixels(x, model.denoiser, model.classifier, **settings)  # pyright: ignore[reportArgumentType]
        before, after = (model.classifier(v).argmax(dim=1).tolist() for v in (x, (seen[-1][1] + 1) / 2))
    weak = next(k for k, (sigma, *_) in enumerate(seen) if sigma <= model.denoiser.sigma(settings["t_s"]) * (1 + 1e-9))  # pyright: ignore[reportOptionalMemberAccess]
    noised = [(z / np.sqrt(1 + sigma**2) + 1) / 2 for sigma, z, _ in (seen[0], seen[weak])]
    parts = (x, maps.amax(dim=1, keepdim=True), mask, *noised, (seen[-1][1] + 1) / 2)
    words = [f"{a}|{100 * float(m.mean()):.0f} %|{b}" for a, m, b in zip(before, mask, after, strict=True)]
    return np.stack([bytes_of(part) for part in parts], axis=1), words


def fig1_pictures() -> dict[str, np.ndarray]:
    """Image, attention map, mask, two noised states and the purified image, of two digits and two canvases."""
    arrays = {}
    for dataset, images, shown in (("digits", IMAGES, [0, 1]), ("canvas", 2, [0, 1])):
        one = attacked("hetero", dataset, images)
        some = one._replace(images=one.images.select(torch.tensor(shown)), x_adv=one.x_adv[shown])
        for side, x in (("clean", some.images.x), ("attacked", some.x_adv)):
            pictures, words = strip(some, x)
            arrays |= {f"{dataset}_{side}": pictures, f"{dataset}_{side}_words": np.array(words)}
    about = "hetero on digits (linf 32/255) and canvas (10/255), which stand for ImageNet; PGD, exact gradient"
    return arrays | {"about": np.array(about)}


class Hole(nn.Module):
    """A classifier that looks at the middle of the image: there is the mask."""

    def features(self, x: Tensor) -> list[Tensor]:
        """One tap (B,1,H,W), 1 in the middle."""
        middle = torch.zeros_like(x[:, :1])
        middle[..., PLACES, PLACES] = 1.0
        return [middle]


def seam(x: Tensor) -> Tensor:
    """How visible the border of the hole is in images (B,C,H,W): (B,), about 1 where nothing shows it.

    It is the mean difference of neighbors across the border, over that of the next pairs on both sides of it.
    """
    first, last = PLACES.start, PLACES.stop
    across, beside = [first - 1, last - 1], [first - 2, first, last - 2, last]

    def steps(places: list[int]) -> Tensor:
        rows = [(x[..., a, PLACES] - x[..., a + 1, PLACES]).abs().mean(dim=(1, 2)) for a in places]
        columns = [(x[..., PLACES, a] - x[..., PLACES, a + 1]).abs().mean(dim=(1, 2)) for a in places]
        return torch.stack([*rows, *columns]).mean(dim=0)

    return steps(across) / steps(beside)


def fig3_resampling(jumps: Sequence[int] = JUMPS, holes: int = HOLES) -> dict[str, np.ndarray]:
    """The middle of canvases drawn anew by hetero's stage 1, over U, by both forms of resampling."""
    evaluation = build(compose.composed("dataset=canvas", "purifier=hetero", f"protocol.images={holes}"))
    denoiser, (ids, x, _) = evaluation.arms["defended"].scored.denoiser, evaluation.subset
    assert denoiser is not None
    given = {"t_l": HOLE_TIME, "t_s": HOLE_END, "tau": 0.5, "steps": HOLE_STEPS, "phi": "minmax"}
    arrays = {"jumps": np.array(jumps), "original": bytes_of(x[:2]), "original_seam": _interval(seam(x))}
    for resampling in ("single", "multi"):
        seams, pictures, nfe = [], [], []
        for jump in jumps:
            denoiser.nfe = 0
            with torch.no_grad():
                rng = Streams(ids.tolist(), SEED, Stage.CLEAN)
                x_hat = hetero.purify(x, denoiser, Hole(), rng, jump=jump, resampling=resampling, **given)  # pyright: ignore[reportArgumentType]
            seams.append(_interval(seam(x_hat)))
            pictures.append(bytes_of(x_hat[:2]))
            nfe.append(denoiser.nfe)
        arrays |= {f"{resampling}_seam": np.array(seams), f"{resampling}_pictures": np.array(pictures)}
        arrays[f"{resampling}_nfe"] = np.array(nfe)
    about = f"canvas: the middle {SIDE} x {SIDE} pixels drawn anew from noise at t = {HOLE_TIME}, {HOLE_STEPS} steps, "
    about += f"{holes} images; bars: 95 %"
    return arrays | {"about": np.array(about)}


def _interval(values: Tensor) -> np.ndarray:
    """The mean of values (B,) and the ends of its 95 % interval over images."""
    array = values.double().numpy()
    low, high = bootstrap(array)
    return np.array([array.mean(), low, high])


def fig4_paths() -> dict[str, np.ndarray]:
    """t-SNE of features: of clean images, and along the purification of attacked ones."""
    from sklearn.manifold import TSNE

    names = ("DiffPure, t = 0.2", "DiffPure, t = 0.4", "hetero")
    background, index = digits(BACKGROUND), list(PATHS)
    points, paths, labels = [pooled(attacked("hetero").model.classifier, background.x)], [], []
    for m, name in enumerate(names):
        model, images, x_adv = attacked(name)
        steps = states(model, x_adv[index], Streams(images.ids[index].tolist(), SEED, Stage.ADV))
        path = [images.x[index], x_adv[index], *((x0 + 1) / 2 for *_, x0 in steps)]
        for step, x in enumerate(path):
            points.append(pooled(model.classifier, x))
            paths += [(m, i, step) for i in range(len(index))]
        labels = images.y[index].tolist()
    flat = torch.cat(points).double().numpy()
    places = TSNE(perplexity=20, init="pca", random_state=0).fit_transform(flat)
    return {
        "background": places[:BACKGROUND],
        "classes": background.y.numpy().astype(np.int8),
        "places": places[BACKGROUND:],
        "paths": np.array(paths, dtype=np.int16),
        "labels": np.array(labels),
        "names": np.array(names),
        "about": np.array(f"t-SNE of the classifier's features, of {BACKGROUND} clean images and of paths; {ABOUT}"),
    }


def density_of(points: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The density of points (N,2) on a grid x (G,), y (G,) around `shown` (M,2): x, y and (G,G)."""
    x, y = (np.linspace(shown[:, k].min() - 1, shown[:, k].max() + 1, GRID) for k in (0, 1))
    return x, y, gaussian_kde(points.T)(np.stack(np.meshgrid(x, y)).reshape(2, -1)).reshape(GRID, GRID)


def fig6_joint() -> dict[str, np.ndarray]:
    """The plane of the first two principal components of clean features: densities of originals, purified samples."""
    original = pooled(attacked("hetero").model.classifier, digits(512).x).double()
    mean = original.mean(dim=0)
    axes = torch.linalg.svd(original - mean, full_matrices=False).Vh[:2].T  # (C,2)
    flat = ((original - mean) @ axes).numpy()
    arrays: dict[str, np.ndarray] = {"names": np.array(list(METHODS)), "original": flat}
    for side, which in (("clean", 1), ("attacked", 2)):
        found = [((features(name)[which].double() - mean) @ axes).flatten(0, 1).numpy() for name in METHODS]
        arrays[side] = np.array(found)
    every = np.concatenate([flat, *arrays["attacked"]])
    x, y, density = density_of(flat, every)
    about = f"first two principal components of the features of 512 clean images, and {SAMPLES} samples each; {ABOUT}"
    return arrays | {"x": x, "y": y, "density": density, "about": np.array(about)}


def fig9_distances() -> dict[str, np.ndarray]:
    """The distance between features of an original and of its purified samples, in the mean over samples."""
    names = ["none", *METHODS]
    model, (_, x, _), x_adv = attacked("hetero")
    undefended = (pooled(model.classifier, x_adv) - pooled(model.classifier, x)).norm(dim=1)
    arrays = {"clean": [np.zeros(3)], "attacked": [_interval(undefended)]}
    for name in METHODS:
        original, clean, adv = features(name)
        for side, found in (("clean", clean), ("attacked", adv)):
            arrays[side].append(_interval((found - original).norm(dim=2).mean(dim=0)))
    about = f"{ABOUT}, {SAMPLES} samples each; none: the images attacked through hetero, not purified; bars: 95 %"
    return {side: np.array(found) for side, found in arrays.items()} | {
        "names": np.array(names),
        "about": np.array(about),
    }
