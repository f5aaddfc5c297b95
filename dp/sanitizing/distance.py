"""Step 4 of DataElixir (Zhou et al. 2024): which of an image's candidates takes its place, by pixels and features."""

import torch
import torch.nn.functional as F
from torch import Tensor

K1, K2 = 0.01, 0.03  # Wang et al. 2004
WINDOW = 3  # side of the window, in pixels: the smallest that has a variance


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (B,) of images a, b (B,C,H,W) in [0,1], with a uniform window (Wang et al. 2004, Eq. 13).

    The mean over all places where the window is inside the image, and over channels. Variances are those of a sample.
    """
    a, b = a.double(), b.double()
    mean_a, mean_b = (F.avg_pool2d(v, WINDOW, stride=1) for v in (a, b))
    sample = WINDOW**2 / (WINDOW**2 - 1)
    var_a = sample * (F.avg_pool2d(a * a, WINDOW, stride=1) - mean_a**2)
    var_b = sample * (F.avg_pool2d(b * b, WINDOW, stride=1) - mean_b**2)
    cov = sample * (F.avg_pool2d(a * b, WINDOW, stride=1) - mean_a * mean_b)
    top = (2 * mean_a * mean_b + K1**2) * (2 * cov + K2**2)
    return (top / ((mean_a**2 + mean_b**2 + K1**2) * (var_a + var_b + K2**2))).mean((1, 2, 3))


def distances(a: Tensor, b: Tensor, features_a: Tensor, features_b: Tensor) -> Tensor:
    """Distances (B,) in [0,1] of images a and b (B,C,H,W) in [0,1] with features (B,D): half of it by structural
    similarity, half by the cosine of the features.
    """
    pixels = (1 - similarity(a, b)) / 2
    features = (1 - F.cosine_similarity(features_a.double(), features_b.double(), dim=1)) / 2
    return 0.5 * pixels + 0.5 * features


def pick(distance: Tensor, allowed: Tensor, quantile: float) -> Tensor:
    """The column (N,) of the candidate at this quantile of the distances (N,1+S) to the image in column 0.

    `allowed`: (N,1+S) bool, the candidates of each image; at least one each. Of equal distances the first comes first.
    """
    order = distance.masked_fill(~allowed, torch.inf).argsort(dim=1, stable=True)
    place = (allowed.sum(1) * quantile).long().clamp(max=allowed.sum(1) - 1)
    return order.gather(1, place[:, None])[:, 0]
