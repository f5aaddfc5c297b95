"""Purifiers that have networks of their own."""

from torch import nn


class PurifierModule(nn.Module):
    """A purifier that is called as every other, `purify(x, denoiser, classifier, rng, *, on_step=None, ...) -> x_hat`,
    and has weights of its own. Those follow the defense that it belongs to: to a device, to a dtype, into a copy.

    `nfe`: a purifier adds 1 to it for every evaluation of a network of its own, per image, as `Denoiser` does.
    """

    nfe: int = 0
