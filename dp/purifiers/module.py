"""Purifiers that have networks of their own."""

import functools
from collections.abc import Callable

from torch import Tensor, nn

from dp.diffusion.checkpointing import ActivationCheckpointing
from dp.precision import narrowed


class PurifierModule(nn.Module):
    """A purifier that is called as every other, `purify(x, denoiser, classifier, rng, *, on_step=None, ...) -> x_hat`,
    and has weights of its own. They follow the defense that it belongs to: to a device, to a dtype, into a copy.

    `memory`: `store` keeps the activations of the networks that `evaluate` calls for the backward pass, `recompute`
    those of the newest `recompute.keep` calls only; the numbers are the same. A run sets it, as it does for a denoiser,
    and it may cast the weights: states stay float32 or wider. `nfe`: network evaluations so far, per image; `evaluate`
    counts its own, and a purifier that calls a network otherwise adds 1 for each call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory = "store"
        self.nfe = 0
        self.recompute = ActivationCheckpointing()

    def evaluate(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """network(x), counted, in the precision of the weights, with its activations stored or recomputed. The network
        draws no noise, and x (B,...) is its only input that needs a gradient.
        """
        self.nfe += 1
        call = functools.partial(self._call, network)
        return call(x) if self.memory == "store" else self.recompute(call, x)

    def _call(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return network(narrowed(x, self)).to(x.dtype)
