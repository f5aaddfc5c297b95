"""What an attacker may ask of a defense: the one contract between attacks and defenses."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from dp.objectives import Loss, cross_entropy
from dp.rng import Streams

# Images (B,C,H,W) and the states of their purification, [(sigma, z (B,C,H,W))] -> a term of the loss, (B,).
AuxiliaryLoss = Callable[[Tensor, Sequence[tuple[float, Tensor]]], Tensor]


class Defense(Protocol):
    """A randomized classifier of images x (B,C,H,W) in [0,1] with labels y (B,). `logits` is the contract; purification
    and then classification is one implementation of it.

    A sample is one stochastic pass of the defense. The k-th of the `samples` of image b has the noise of `rng.draw(k)`
    in slot b, in every method alike. Losses are averaged over samples; of a loss with several columns (B,M) each is
    averaged, and the first is differentiated.
    """

    def gradient_mode(self, name: str) -> "Defense":
        """The same defense with another derivative: `full` (its own), `bpda` (the identity in place of the derivative
        of the purification), `blind` (the bare classifier), or one of the method's own gradient variants.
        """
        ...

    def gradient_modes(self, names: Sequence[str]) -> "Defense":
        """Those gradient modes one after another; of no names the defense itself."""
        ...

    def logits(self, x: Tensor, rng: Streams, samples: int) -> Tensor:
        """Logits of K classes, (samples,B,K)."""
        ...

    def logits_of(
        self, queries: Sequence[tuple[int, int]], images: Sequence[Tensor], rng: Streams, samples: int
    ) -> Tensor:
        """Logits (samples,len(queries),K) of images[m][b] for the queries (m, b), each with the noise of slot b.
        `images`: batches (B,C,H,W).
        """
        ...

    def loss(self, x: Tensor, y: Tensor, rng: Streams, samples: int, loss: Loss = cross_entropy) -> Tensor:
        """The mean loss, (B,) or (B,M)."""
        ...

    def loss_gradient(
        self,
        x: Tensor,
        y: Tensor,
        rng: Streams,
        samples: int,
        loss: Loss = cross_entropy,
        auxiliary: AuxiliaryLoss | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The mean loss, (B,) or (B,M), and the gradient of its first column in x, (B,C,H,W). `auxiliary`: a term that
        is added to that column.
        """
        ...

    def purified(self, x: Tensor, rng: Streams, samples: int) -> Tensor:
        """Purified images (samples,B,C,H,W), without a graph."""
        ...

    def vjp(self, x: Tensor, rng: Streams, which: Sequence[int], direction: Tensor) -> Tensor:
        """The vector-Jacobian product direction^T dx_hat / dx, (B,C,H,W), of sample which[b] of each image."""
        ...
