"""What an attacker may ask of a defense: the one contract between attacks and defenses."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from dp.objectives import Loss, cross_entropy
from dp.rng import Streams

Along = Callable[[Tensor, Sequence[tuple[float, Tensor]]], Tensor]  # (B,C,H,W), [(sigma, z (B,C,H,W))] -> (B,)


class Model(Protocol):
    """What an attack may ask of the defence it attacks; losses are averaged over `draws`, which share network calls.

    A loss of several columns (B,M) has each of them averaged, and the first differentiated.
    """

    def view(self, grad: str) -> "Model":
        """The same defence led by another gradient: `full`, `bpda`, `blind`, or one that the purifier's yaml names."""
        ...

    def logits(self, x: Tensor, rng: Streams, draws: int) -> Tensor:
        """(draws,B,K)."""
        ...

    def logits_of(self, asked: Sequence[tuple[int, int]], images: Sequence[Tensor], rng: Streams, draws: int) -> Tensor:
        """(draws,len(asked),K) of images[m][b] for the pairs (m, b), with the noise of lane b."""
        ...

    def loss(self, x: Tensor, y: Tensor, rng: Streams, draws: int, loss: Loss = cross_entropy) -> Tensor:
        """(B,) or (B,M)."""
        ...

    def loss_gradient(
        self, x: Tensor, y: Tensor, rng: Streams, draws: int, loss: Loss = cross_entropy, along: Along | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B,) or (B,M), and (B,C,H,W). `along`: a term from the states of the purification, added to the loss."""
        ...

    def purified(self, x: Tensor, rng: Streams, draws: int) -> Tensor:
        """(draws,B,C,H,W), without a graph."""
        ...

    def pull_back(self, x: Tensor, rng: Streams, which: Sequence[int], direction: Tensor) -> Tensor:
        """direction^T dx_hat / dx, (B,C,H,W), of draw which[b] of each image."""
        ...
