"""A perceptual distance in the form of LPIPS (Zhang et al. 2018, arXiv 1801.03924), over the taps of any classifier."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.rng import Streams
from dp.threat_models.ball import OPTIONS, ThreatModel

GUARD = 1e-10  # LPIPS's own guard against features that are all zero


class Perceptual:
    """Features are scaled to unit length at every pixel; their squared differences are summed over channels, averaged
    over pixels, and added over the classifier's taps with `weights`, by default 1 / taps each.

    LPIPS itself takes VGG16 and weights per channel that were fitted to people's judgment. Without them the numbers
    are on another scale, and differ from classifier to classifier.
    """

    def __init__(self, classifier: Classifier, weights: Sequence[float] | None = None):
        taps = len(classifier.taps)
        if taps == 0:
            raise ValueError("need taps for a perceptual distance, got none: name them in the classifier's yaml")
        self.weights = [1 / taps] * taps if weights is None else [float(w) for w in weights]
        if len(self.weights) != taps or min(self.weights) < 0:
            raise ValueError(f"need {taps} weights >= 0, one per tap, got {list(self.weights)}")
        self.classifier = classifier

    def features(self, x: Tensor) -> list[Tensor]:
        """(B,C,h,w) per tap, of unit length at every pixel, float64."""
        features = [f.double() for f in self.classifier.features(x)]
        return [f / (f.square().sum(dim=1, keepdim=True) + GUARD**2).sqrt() for f in features]

    def __call__(self, x: Tensor, other: Tensor) -> Tensor:
        """(B,) float64, 0 for equal images; differentiable in both."""
        return self.between(self.features(x), self.features(other))

    def largest(self, x: Tensor) -> float:
        return float("inf")  # features have no bound

    def between(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """(B,): the distance, given `features` of both."""
        total = features[0].new_zeros(len(features[0]))
        for weight, a, b in zip(self.weights, features, others, strict=True):
            total = total + weight * (a - b).square().sum(dim=1).mean(dim=(1, 2))
        return total


@dataclass(frozen=True)
class PerceptualModel(ThreatModel):
    """Images of the box within `eps` of x in a perceptual distance, that of `metric`: no ball of pixels.

    The distance is the defense's own: `seen_by(classifier)` gives the threat model with it.
    """

    norm: str = "perceptual"
    eps: float = 0.05
    metric: Perceptual | None = None
    norms: ClassVar[tuple[str, ...]] = ("perceptual",)

    def seen_by(self, classifier: nn.Module) -> "PerceptualModel":
        assert isinstance(classifier, Classifier), "need a Classifier, which has taps"
        return dataclasses.replace(self, metric=Perceptual(classifier))

    def between(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """(B,) float64, with its graph."""
        if self.metric is None:
            raise ValueError(f"need a classifier for threat_model={OPTIONS['perceptual']}, got none: call seen_by")
        return self.metric(x_adv, x)

    @torch.no_grad()
    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """(B,) float64, without a graph."""
        return self.between(x_adv, x)

    @torch.no_grad()
    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """x_adv in the box; where that is too far, the farthest point on the way to it that 12 halvings find within
        eps.
        """
        x_adv = x_adv.clamp(0.0, 1.0)
        far = self.distance(x_adv, x) > self.eps  # (B,)
        if not bool(far.any()):
            return x_adv
        near, step = x.new_zeros(len(x), 1, 1, 1), 0.5
        for _ in range(12):
            inside = self.distance(x + (near + step) * (x_adv - x), x) <= self.eps
            near, step = near + step * inside.to(x).view(-1, 1, 1, 1), step / 2
        return torch.where(far.view(-1, 1, 1, 1), x + near * (x_adv - x), x_adv)

    def ascend(self, x_adv: Tensor, grad: Tensor, step: float | Tensor) -> Tensor:
        """As in l2: step * grad / |grad|_2, for want of a direction that the distance would call steepest."""
        length = grad.flatten(1).norm(dim=1).clamp(min=torch.finfo(grad.dtype).tiny)
        return x_adv + step * grad / length.view(-1, 1, 1, 1)

    def random_start(self, x: Tensor, rng: Streams) -> Tensor:
        return self.noise(x, rng)

    def noise(self, x: Tensor, rng: Streams) -> Tensor:
        """Gaussian noise of a quarter of the resolution, added as far as eps allows."""
        coarse = rng.randn_like(x.new_empty(len(x), x.shape[1], *(-(-side // 4) for side in x.shape[2:])))
        smooth = F.interpolate(coarse, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.project(x + smooth, x)
