"""What attacks maximise: functions of the logits (B,K) and labels (B,), positive exactly where an image is lost unless
said otherwise.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]  # (B,K) logits, (B,) labels -> (B,), or (B,M) for several at once
LOSSES = ("ce", "dlr", "targeted")
LEAST_CLASSES = {"ce": 2, "dlr": 3, "targeted": 4}
tiny = 1e-12  # below it a spread of logits counts as none


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """(B,K), (B,) -> (B,) in nats; large is lost, with no threshold."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k != y} z_k - z_y, (B,)."""
    right = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(right, -torch.inf).amax(dim=1) - _at(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, eq. 6): -(z_y - max_{k != y} z_k) / (z_(1) - z_(3)); K >= 3."""
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + tiny)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2) (Croce and Hein 2020, eq. 7); K >= 4. Positive where z_t > z_y."""
    top = logits.topk(4, dim=1).values
    return (_at(logits, target) - _at(logits, y)) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + tiny)


def with_margin(loss: str, target: Tensor | None = None) -> Loss:
    """The named loss and the margin as columns (B,2). `target` (B,) for `targeted`; draws of the batch come
    draw-major.
    """

    def columns(logits: Tensor, y: Tensor) -> Tensor:
        if loss == "targeted":
            assert target is not None, "a targeted loss needs its targets"
            first = targeted_dlr(logits, y, target.repeat(len(y) // len(target)))
        else:
            first = {"ce": cross_entropy, "dlr": dlr, "margin": margin}[loss](logits, y)
        return torch.stack([first, margin(logits, y)], dim=1)

    return columns


def check_classes(loss: str, classes: int, targets: int = 1) -> None:
    """Raises ValueError where the loss is not defined: dlr needs 3 classes, targeted 4 and as many wrong ones as
    targets.
    """
    need = max(LEAST_CLASSES[loss], targets + 1)
    if classes < need:
        raise ValueError(f"need {need} classes for attack.loss={loss} with {targets} targets, got {classes}: use ce")


def _at(logits: Tensor, k: Tensor) -> Tensor:
    return logits.gather(1, k.view(-1, 1))[:, 0]
