"""Attacks: one file per method, a frozen dataclass with `start` and `step` over a per-image state."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dp.attacks.objectives import Loss, cross_entropy, margin
from dp.attacks.state import where
from dp.rng import Streams
from dp.threat import BALLS, OPTIONS, ThreatModel

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


def strongest(
    model: Model,
    candidates: Sequence[Any],
    y: Tensor,
    rng: Streams,
    draws: int,
    by: Loss = margin,
    among: Tensor | None = None,
) -> Any:
    """Per image the candidate with the largest mean margin (or mean of `by`), all on the same draws of `rng`; a tie
    goes to the first. Candidates: images (B,C,H,W), or tuples of tensors that begin with them. `among`: the images
    (B,) that are asked about, of the others the first candidate stays. What is the same image with the same noise is
    asked about once.

    The draws must be none that chose the candidates: the largest of many noisy scores flatters.
    """
    images = [found if isinstance(found, Tensor) else found[0] for found in candidates]
    lanes = range(len(y)) if among is None else among.nonzero()[:, 0].tolist()
    places: dict[tuple[bytes, bytes], int] = {}  # stream and image -> which of those asked about
    asked, at = [], torch.zeros(len(images), len(y), dtype=torch.long)
    for m, x in enumerate(images):
        pixels = x.detach().cpu()
        for b in lanes:
            place = places.setdefault((rng.keys[b], pixels[b].numpy().tobytes()), len(asked))
            asked += [(m, b)] if place == len(asked) else []
            at[m, b] = place
    labels = y[[b for _, b in asked]]
    with torch.no_grad():
        logits = model.logits_of(asked, images, rng, draws)
    values = by(logits.flatten(0, 1), labels.repeat(draws)).unflatten(0, (draws, len(asked))).mean(dim=0)
    values = values[at.to(values.device)]  # (M,B)
    best, strongest = values[0], candidates[0]
    for value, found in zip(values[1:], candidates[1:], strict=True):
        strongest, best = where(value > best, found, strongest), torch.maximum(value, best)
    return strongest
