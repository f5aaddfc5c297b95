"""The loss curve of an attack: what its own questions to the defense show, without a further network call.

Whatever an attack climbs, the loss is the cross entropy, so that the curves of all attacks have one unit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dp.defense.interface import Defense
from dp.defense.wrapper import Query, Wrapped
from dp.objectives import Loss, cross_entropy


class Point(NamedTuple):
    """One iteration of the attack on an image, at the point that it started from; NaN is what it did not ask for.

    The samples are those of the iteration's gradient, or those of its values if it took none.
    """

    loss: float  # mean cross entropy over the samples, in nats
    gradient_norm: float  # l2 norm of the gradient that the attack followed, of its own objective, images in [0,1]
    right: float  # share of the samples that have the label's class


NOTHING = Point(*[float("nan")] * len(Point._fields))


class Sums:
    """Sums over the samples of one kind of question, for each image of a batch."""

    def __init__(self):
        self.loss: Tensor | None = None  # (B,)
        self.right: Tensor | None = None  # (B,)
        self.samples = 0

    def add(self, logits: Tensor, y: Tensor, width: int) -> None:
        """Add the samples of `width` images: logits (samples*width,K), the first sample of all images first."""
        with torch.no_grad():
            loss = cross_entropy(logits.float(), y).view(-1, width).sum(dim=0)
            right = (logits.argmax(dim=1) == y).view(-1, width).sum(dim=0)
        self.loss = loss if self.loss is None else self.loss + loss
        self.right = right if self.right is None else self.right + right
        self.samples += len(y) // width

    def means(self) -> Tensor | None:
        """(2,B): the mean loss and the share of right samples."""
        if self.loss is None or self.right is None:
            return None
        return torch.stack([self.loss, self.right.to(self.loss)]) / self.samples


class Notes:
    """What one iteration on a batch of `width` images has asked. Questions about another number are not noted."""

    def __init__(self, width: int):
        self.width = width
        self.of_gradients, self.of_values = Sums(), Sums()
        self.norm: Tensor | None = None  # (B,): of the last gradient

    def points(self) -> list[Point]:
        """A point for each image. It waits for the device once."""
        sums = self.of_gradients if self.of_gradients.samples else self.of_values
        means = sums.means()
        if means is None and self.norm is None:
            return [NOTHING] * self.width
        device = self.norm.device if means is None else means.device  # pyright: ignore[reportOptionalMemberAccess]
        nothing = torch.full((self.width,), float("nan"), device=device)
        loss, right = (nothing, nothing) if means is None else means
        norm = nothing if self.norm is None else self.norm
        return [Point(*values) for values in torch.stack([loss, norm.to(loss), right]).T.tolist()]


class Noted(Wrapped):
    """A defense whose answers to one iteration are noted. Its gradient modes share the notes."""

    def __init__(self, model: Defense, notes: Notes):
        super().__init__(model)
        self.notes = notes

    def around(self, model: Defense, name: str) -> "Noted":
        return Noted(model, self.notes)

    def answered(self, query: Query) -> None:
        if len(query.gradient) == self.notes.width:
            self.notes.norm = query.gradient.flatten(1).norm(dim=1)

    def objective(self, loss: Loss, x: Tensor, differentiated: bool) -> Loss:
        """The same loss, whose logits are noted."""
        if len(x) != self.notes.width:
            return loss
        sums = self.notes.of_gradients if differentiated else self.notes.of_values

        def noting(logits: Tensor, y: Tensor) -> Tensor:
            sums.add(logits, y, len(x))
            return loss(logits, y)

        return noting


def mean_point(points: Sequence[Point]) -> Point:
    """The means over images, without what is NaN."""
    values = torch.tensor(points, dtype=torch.float64).view(-1, len(Point._fields))
    return Point(*values.nanmean(dim=0).tolist())


def padded(curves: Sequence[Sequence[Point]]) -> Tensor:
    """The curves of B images as (B,iterations,3) float32, NaN behind the end of each."""
    length = max(map(len, curves), default=0)
    whole = torch.tensor([[*curve, *[NOTHING] * (length - len(curve))] for curve in curves], dtype=torch.float32)
    return whole.view(len(curves), length, len(Point._fields))
