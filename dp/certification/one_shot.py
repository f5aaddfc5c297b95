"""One-shot denoising before the classifier (Carlini et al. 2022)."""

from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import check_level, to_01, to_pm1
from dp.rng import Streams


def classes(x: Tensor, sigma: float, denoiser: Denoiser, classifier: Classifier, rng: Streams) -> Tensor:
    """The class (B,) of each noised image x (B,C,H,W), denoised by one call. NFE = 1.

    x is an image in [0,1] plus Gaussian noise of std `sigma`, so it may leave [0,1]. In [-1,1] the noise has std
    2 sigma, which is the level that the denoiser is asked for. The denoised image is clipped.
    Raises ValueError for a level beyond the denoiser's clock.
    """
    check_level(denoiser.sigma, 2 * sigma)
    # Differs: the denoiser is asked for exactly this level, not for the next index (deviation 100: level of the noise).
    x0 = denoiser(to_pm1(x), 2 * sigma)
    return classifier(to_01(x0)).argmax(dim=1)
