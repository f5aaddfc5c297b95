"""A defense that hands every question on to another one: what changes one thing about a defense inherits from it."""

import functools
from collections.abc import Sequence
from typing import NamedTuple, Self

from torch import Tensor

from dp.defense.interface import AuxiliaryLoss, Defense
from dp.objectives import Loss, cross_entropy
from dp.rng import Streams


class Query(NamedTuple):
    """A question for a gradient, and the answer."""

    x: Tensor  # (B,C,H,W)
    gradient: Tensor  # (B,C,H,W)
    samples: int | None  # that the gradient is the mean of; None: of one chosen sample
    loss: Loss
    auxiliary: AuxiliaryLoss | None
    modes: tuple[str, ...] = ()  # gradient modes between the defense that noted it and the one that was asked


class Wrapped:
    """`model`, and nothing changed. Subclasses change the noise that it is asked with, or note what it answers."""

    def __init__(self, model: Defense):
        self.model = model

    def around(self, model: Defense, name: str) -> Self:
        """This wrapper around the gradient mode `name` of its model."""
        return type(self)(model)

    def noise(self, rng: Streams, samples: int) -> tuple[Streams, int]:
        """The noise and the number of samples that the model is asked with."""
        return rng, samples

    def expand(self, answers: Tensor, samples: int) -> Tensor:
        """What is returned where the model has answered with samples (N,...) and `samples` were asked for."""
        return answers

    def chosen(self, which: Sequence[int]) -> Sequence[int]:
        """The samples that the model is asked for in place of `which`."""
        return which

    def objective(self, loss: Loss, x: Tensor, differentiated: bool) -> Loss:
        """The loss that the model is asked for at images x (B,C,H,W), with its gradient or without."""
        return loss

    def answered(self, query: Query) -> None:
        """Called with every gradient."""

    def gradient_mode(self, name: str) -> Self:
        return self if name == "full" else self.around(self.model.gradient_mode(name), name)

    def gradient_modes(self, names: Sequence[str]) -> Self:
        return functools.reduce(lambda model, name: model.gradient_mode(name), names, self)

    def logits(self, x: Tensor, rng: Streams, samples: int) -> Tensor:
        return self.expand(self.model.logits(x, *self.noise(rng, samples)), samples)

    def logits_of(
        self, queries: Sequence[tuple[int, int]], images: Sequence[Tensor], rng: Streams, samples: int
    ) -> Tensor:
        return self.expand(self.model.logits_of(queries, images, *self.noise(rng, samples)), samples)

    def loss(self, x: Tensor, y: Tensor, rng: Streams, samples: int, loss: Loss = cross_entropy) -> Tensor:
        return self.model.loss(x, y, *self.noise(rng, samples), self.objective(loss, x, differentiated=False))

    def loss_gradient(
        self,
        x: Tensor,
        y: Tensor,
        rng: Streams,
        samples: int,
        loss: Loss = cross_entropy,
        auxiliary: AuxiliaryLoss | None = None,
    ) -> tuple[Tensor, Tensor]:
        asked = self.objective(loss, x, differentiated=True)
        values, gradient = self.model.loss_gradient(x, y, *self.noise(rng, samples), asked, auxiliary)
        self.answered(Query(x=x, gradient=gradient, samples=samples, loss=loss, auxiliary=auxiliary))
        return values, gradient

    def purified(self, x: Tensor, rng: Streams, samples: int) -> Tensor:
        return self.expand(self.model.purified(x, *self.noise(rng, samples)), samples)

    def vjp(self, x: Tensor, rng: Streams, which: Sequence[int], direction: Tensor) -> Tensor:
        gradient = self.model.vjp(x, self.noise(rng, 1)[0], self.chosen(which), direction)
        self.answered(Query(x=x, gradient=gradient, samples=None, loss=cross_entropy, auxiliary=None))
        return gradient
