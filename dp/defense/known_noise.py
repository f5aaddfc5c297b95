"""A defense whose attacker knows the noise that will score (DW-box, Liu et al.)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dp.defense.interface import Defense
from dp.defense.wrapper import Wrapped
from dp.rng import Streams


class KnownNoise(Wrapped):
    """`model`, asked with the first `samples` samples of `rng` whatever noise an attack asks with; an attack that wants
    more samples gets the same ones again.
    """

    def __init__(self, model: Defense, rng: Streams, samples: int):
        super().__init__(model)
        self.rng, self.samples = rng, samples

    def around(self, model: Defense, name: str) -> "KnownNoise":
        return KnownNoise(model, self.rng, self.samples)

    def noise(self, rng: Streams, samples: int) -> tuple[Streams, int]:
        return self.rng, self.samples

    def expand(self, answers: Tensor, samples: int) -> Tensor:
        return answers[torch.arange(samples) % self.samples]

    def chosen(self, which: Sequence[int]) -> Sequence[int]:
        return [k % self.samples for k in which]
