"""The contract of an attack: a frozen dataclass with `start` and `step` over a per-image state."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from dp.defense.interface import Model
from dp.rng import Streams
from dp.threat_models.ball import BALLS, OPTIONS, ThreatModel


class Attack(Protocol):
    """`steps` calls of `step` after one of `start`, each with streams of its own. The state is a NamedTuple of tensors,
    dim 0 = image (or of further such tuples), whose field `x_adv` is always feasible.

    `eot` and `select` tell the null control how the attack looks at a candidate and chooses. What only some have:
    `batch_bound`, True where results hang on which images share a batch; `boundaries` and `newest`, see there; `grad`,
    the view of the defence that it looks at, if not the one it is given, or `values` where it asks for no gradient;
    `criterion`, what it goes by, if not the mean over draws; `confirm`, how many fresh draws of its own chose the point
    that it returns in the end; `candidates`, how many points it looks at, if not one a step; `norms`, what it works on,
    if not balls. Under a threat model that asks for a proof, its state has a field `proof` (see `ThreatModel.admit`).
    """

    @property
    def steps(self) -> int: ...
    @property
    def eot(self) -> int: ...
    @property
    def select(self) -> str: ...
    def says(self, through: str) -> str:
        """One line for people: what it asks of the defence, how often, and through what it differentiates."""
        ...

    def start(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> NamedTuple: ...
    def step(self, model: Model, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> NamedTuple: ...


def is_batch_bound(attack: Attack) -> bool:
    """Whether rows depend on the batch, exempt from the invariance under order, shards and refills (design.md 2)."""
    return bool(getattr(attack, "batch_bound", False))


def is_confirmed(attack: Attack) -> bool:
    """Whether fresh draws of its own chose the point that it returns in the end, so that no judge need choose again."""
    return getattr(attack, "confirm", 0) > 0


def boundaries(attack: Attack) -> tuple[int, ...]:
    """Rising counts of steps at which an image had better wait for others, because its next steps ask the defence for
    something else; the last is `attack.steps`.
    """
    return getattr(attack, "boundaries", (attack.steps,))


def norms(attack: Attack) -> tuple[str, ...]:
    """The norms of threat models under which it can run."""
    return getattr(attack, "norms", BALLS)


def check_norm(attack: Attack, named: str, norm: str) -> None:
    """Raises ValueError where the attack, called `named`, cannot run under a threat model of `norm`."""
    if norm not in norms(attack):
        need = " or ".join(OPTIONS[n] for n in norms(attack))
        raise ValueError(f"need threat_model={need} for attack={named}, got threat_model={OPTIONS[norm]}")


def newest(attack: Attack, state: Any) -> Any:
    """The state with, as `x_adv`, the point that the attack stands at rather than the one that it would return: what is
    judged while it runs. An attack that keeps its iterate elsewhere than in the state's `x` has a method of this name.
    """
    if hasattr(attack, "newest"):
        return attack.newest(state)  # pyright: ignore[reportAttributeAccessIssue]
    return state._replace(x_adv=state.x) if hasattr(state, "x") else state
