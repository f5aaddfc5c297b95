"""Attacks: one file per method, a frozen dataclass with `start` and `step` over a per-image state."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from dp.rng import Streams
from dp.threat import ThreatModel


class Model(Protocol):
    """What an attack may ask of the defence it attacks; losses are averaged over `draws`, which share network calls."""

    def logits(self, x: Tensor, rng: Streams, draws: int) -> Tensor:
        """(draws,B,K)."""
        ...

    def loss(self, x: Tensor, y: Tensor, rng: Streams, draws: int) -> Tensor:
        """(B,)."""
        ...

    def loss_gradient(self, x: Tensor, y: Tensor, rng: Streams, draws: int) -> tuple[Tensor, Tensor]:
        """(B,) and (B,C,H,W)."""
        ...


class Attack(Protocol):
    """`steps` calls of `step` after one of `start`, each with streams of its own. The state is a NamedTuple of tensors,
    dim 0 = image,

    whose field `x_adv` is always feasible. `eot` and `select` tell the null control how the attack looks at a
    candidate and chooses.
    """

    @property
    def steps(self) -> int: ...
    @property
    def eot(self) -> int: ...
    @property
    def select(self) -> str: ...
    def start(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> NamedTuple: ...
    def step(self, model: Model, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> NamedTuple: ...
