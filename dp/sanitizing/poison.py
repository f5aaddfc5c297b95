"""The poison of a backdoor attack: some images of a training set get a trigger and the target label (all to one)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dp.subset import Subset


@dataclass(frozen=True)
class Poison:
    """A backdoor attack.

    `trigger`: a function of images (B,C,H,W) in [0,1], or None for a set that is sanitized as it is: then nobody knows
    what is poisoned in it. `rate`: poisoned images as a share of the whole set. `target`: the label that they get;
    images that have it already are never chosen. `seed`: of the choice.
    Raises ValueError for a rate outside (0,1) and a negative target; without a trigger, for others than 0 and -1.
    """

    trigger: Callable[[Tensor], Tensor] | None
    rate: float
    target: int
    seed: int

    def __post_init__(self) -> None:
        if self.trigger is not None and not (0 < self.rate < 1 and self.target >= 0):
            got = f"poison.rate={self.rate}, poison.target={self.target}"
            raise ValueError(f"need 0 < poison.rate < 1 and poison.target >= 0, got {got}")
        if self.trigger is None and (self.rate, self.target) != (0, -1):
            got = f"poison.rate={self.rate}, poison.target={self.target}"
            raise ValueError(
                f"need poison.rate=0 and poison.target=-1 without a trigger, which poisons nothing, got {got}"
            )

    @property
    def known(self) -> bool:
        """True if this attack poisons the set, so that it is known which images are poisoned."""
        return self.trigger is not None

    def chosen(self, y: Tensor) -> Tensor:
        """(N,) bool: the images that are poisoned, of a set with labels y (N,). It depends on the seed alone.

        Raises ValueError if the rate asks for no image, or for more than there are outside the target class.
        """
        marked = torch.zeros(len(y), dtype=torch.bool)
        if not self.known:
            return marked
        others = (y != self.target).nonzero().flatten()
        count = round(self.rate * len(y))
        if not len(others):
            raise ValueError(f"need images outside class {self.target} to poison, got {len(y)} of that class alone")
        if not 1 <= count <= len(others):
            raise ValueError(
                f"need between 1 and {len(others)} poisoned images, those outside class {self.target}, got {count} "
                f"(poison.rate={self.rate} of {len(y)} images)"
            )
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(self.seed))
        marked[others[order[:count]]] = True
        return marked

    def marked(self, x: Tensor) -> Tensor:
        """Images x (B,C,H,W) in [0,1] with the trigger; without one, as they are."""
        return x if self.trigger is None or not len(x) else self.trigger(x)

    def applied(self, data: Subset) -> tuple[Subset, Tensor]:
        """The poisoned set, and which of its images are poisoned, (N,) bool."""
        chosen = self.chosen(data.y)
        x, y = data.x.clone(), data.y.clone()
        x[chosen], y[chosen] = self.marked(x[chosen]), self.target
        return Subset(data.ids, x, y), chosen

    def attacked(self, test: Subset) -> Subset:
        """The test images outside the target class with the trigger, and with their own labels: on these the success
        of the attack is measured. Without a trigger there are none.
        """
        others = test.select((test.y != self.target) & self.known)
        return others._replace(x=self.marked(others.x))
