"""The classifier alone on the noised image, the baseline of a denoised classifier (Cohen et al. 2019)."""

from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.rng import Streams


def classes(x: Tensor, sigma: float, denoiser: Denoiser | None, classifier: Classifier, rng: Streams) -> Tensor:
    """The class (B,) of each noised image x (B,C,H,W). x is an image in [0,1] plus noise, so it may leave [0,1]."""
    return classifier(x).argmax(dim=1)
