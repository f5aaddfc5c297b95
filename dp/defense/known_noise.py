"""A defense whose attacker knows the noise that will score (DW-box, Liu et al.)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dp.defense.defended import Defended
from dp.defense.interface import Along
from dp.objectives import Loss, cross_entropy
from dp.rng import Streams


class KnownDraws:
    """A defence whose attacker knows the very draws that will score (DW-box, Liu et al.; evaluation.md section 1):
    whatever noise an attack asks with, it gets the `draws` of `rng`.
    """

    def __init__(self, model: Defended, rng: Streams, draws: int):
        self.model, self.rng, self.draws = model, rng, draws

    def view(self, grad: str) -> "KnownDraws":
        return KnownDraws(self.model.view(grad), self.rng, self.draws)

    def logits(self, x: Tensor, rng: Streams, draws: int) -> Tensor:
        known = self.model.logits(x, self.rng, self.draws)
        return known[torch.arange(draws) % self.draws]

    def logits_of(self, asked: Sequence[tuple[int, int]], images: Sequence[Tensor], rng: Streams, draws: int) -> Tensor:
        known = self.model.logits_of(asked, images, self.rng, self.draws)
        return known[torch.arange(draws) % self.draws]

    def loss(self, x: Tensor, y: Tensor, rng: Streams, draws: int, loss: Loss = cross_entropy) -> Tensor:
        return self.model.loss(x, y, self.rng, self.draws, loss)

    def loss_gradient(
        self, x: Tensor, y: Tensor, rng: Streams, draws: int, loss: Loss = cross_entropy, along: Along | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.model.loss_gradient(x, y, self.rng, self.draws, loss, along)

    def purified(self, x: Tensor, rng: Streams, draws: int) -> Tensor:
        known = self.model.purified(x, self.rng, self.draws)
        return known[torch.arange(draws) % self.draws]

    def pull_back(self, x: Tensor, rng: Streams, which: Sequence[int], direction: Tensor) -> Tensor:
        return self.model.pull_back(x, self.rng, [k % self.draws for k in which], direction)
