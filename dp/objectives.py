"""What attacks maximize: functions of logits (B,K) and labels (B,).

Unless a docstring says otherwise, a value is positive exactly where the image is misclassified.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]  # (B,K) logits, (B,) labels -> (B,), or (B,M) for several at once
LOSSES = ("ce", "dlr", "targeted")
LEAST_CLASSES = {"ce": 2, "dlr": 3, "targeted": 4}
MIN_SPREAD = 1e-12  # added to a spread of logits before dividing by it


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy in nats, (B,). Large means misclassified, but there is no threshold."""
    return F.cross_entropy(logits, y, reduction="none")


def targeted_cross_entropy(target: Tensor) -> Loss:
    """The negative cross entropy of target classes (N,), in nats: large means classified as the target. A batch of
    several samples of N images has the first sample of all images, then the second, and so on.
    """
    return lambda logits, y: -cross_entropy(logits, target.repeat(len(y) // len(target)))


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The margin max_{k != y} z_k - z_y, (B,)."""
    right = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(right, -torch.inf).amax(dim=1) - _at(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, Eq. 6), (B,), for K >= 3 classes.

    -(z_y - max_{k != y} z_k) / (z_(1) - z_(3)), with z_(i) the i-th largest logit.
    """
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + MIN_SPREAD)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio (Croce and Hein 2020, Eq. 7), (B,), for K >= 4 classes.

    -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), positive where z_t > z_y. `target`: (B,) classes.
    """
    top = logits.topk(4, dim=1).values
    return (_at(logits, target) - _at(logits, y)) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + MIN_SPREAD)


def with_margin(loss: str, target: Tensor | None = None) -> Loss:
    """A loss with two columns (B,2): the named loss (ce, dlr, margin or targeted) and the margin.

    `target`: (N,) classes for `targeted`, or for `ce`, which is then the `targeted_cross_entropy`. A batch of several
    samples of N images has the first sample of all images, then the second, and so on.
    """

    def columns(logits: Tensor, y: Tensor) -> Tensor:
        if loss == "targeted":
            assert target is not None, "a targeted loss needs its targets"
            first = targeted_dlr(logits, y, target.repeat(len(y) // len(target)))
        elif target is not None:
            assert loss == "ce", "of the other losses only ce has a target"
            first = targeted_cross_entropy(target)(logits, y)
        else:
            first = {"ce": cross_entropy, "dlr": dlr, "margin": margin}[loss](logits, y)
        return torch.stack([first, margin(logits, y)], dim=1)

    return columns


def check_classes(loss: str, classes: int, targets: int = 1) -> None:
    """Raise ValueError where the loss is not defined for this number of classes.

    `dlr` needs 3 classes, `targeted` 4 and as many wrong classes as `targets`.
    """
    need = max(LEAST_CLASSES[loss], targets + 1)
    if classes < need:
        wanted = f"loss={loss} of an attack" + (f" with {targets} targets" if loss == "targeted" else "")
        key = f"targets={classes - 1}" if classes >= LEAST_CLASSES[loss] else "loss=ce"
        todo = f"set attack.{key}, in a union attack.attacks.apgd_t.{key}, or use attack=apgd_ce"
        raise ValueError(f"need {need} classes for {wanted}, got {classes}: {todo}")


def _at(logits: Tensor, k: Tensor) -> Tensor:
    return logits.gather(1, k.view(-1, 1))[:, 0]
