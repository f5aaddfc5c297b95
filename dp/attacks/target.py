"""The class at which a targeted attack aims: drawn at random (Kurakin et al. 2017) or the least likely one."""

import torch
from torch import Tensor

from dp.attacks.base import Start
from dp.defense.interface import Defense
from dp.rng import Streams

TARGETS = ("random", "least_likely")


def check_target(target: str | None) -> None:
    """Raises ValueError for a target that there is not."""
    if target is not None and target not in TARGETS:
        raise ValueError(f"need target {' or '.join(TARGETS)}, or null for none, got target={target!r}")


def targets_of(target: str | None, model: Defense, x: Tensor, y: Tensor, rng: Streams, samples: int) -> Tensor:
    """The target class of every image x (B,C,H,W) with label y (B,), (B,1), which is never the label; (B,0) without.

    `random`: uniform over all other classes, drawn for each image from its own stream. `least_likely`: the class of the
    least mean probability over `samples` samples of the defense at the clean image. `rng`: what `Attack.start` is
    given.
    """
    if target is None:
        return y.new_empty(len(y), 0)
    logits = model.logits(x, rng.draw(Start.SURVEY), samples if target == "least_likely" else 1)  # (samples,B,K)
    classes = logits.shape[2]
    if target == "least_likely":
        likely = logits.softmax(dim=2).mean(dim=0)
        return likely.scatter(1, y.view(-1, 1), torch.inf).argmin(dim=1, keepdim=True)
    drawn = rng.draw(Start.TARGET).uniform_like(torch.empty(len(y), 1, dtype=torch.float64, device=y.device))
    others = (drawn * (classes - 1)).long()  # (B,1) a class when the label is left out
    return others + (others >= y.view(-1, 1))
