"""No defence: the image goes to the classifier as it is."""

from torch import Tensor


def purify(x: Tensor, denoiser, classifier, rng, *, on_step=None) -> Tensor:
    """x (B,C,H,W) in [0,1], returned as it is."""
    return x
