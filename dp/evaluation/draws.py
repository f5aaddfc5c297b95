"""Fresh samples of the scored defense, and what they decide."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dp.defense.defended import Defended
from dp.rng import Streams
from dp.statistics import metrics


def fresh_draws(
    model: Defended,
    x: Tensor,
    ids: Sequence[int],
    seed: int,
    stage: str,
    draws: int,
    lanes: int,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """(B,draws,K) logits on the CPU of images (B,C,H,W), in batches of `lanes`, the last one padded, so that none
    depends on its company; `stage` names the noise. `on_batch(images)` after every batch.
    """
    parts = []
    for first in range(0, len(x), lanes):
        here = list(range(first, min(first + lanes, len(x))))
        padded = [*here, *[here[-1]] * (lanes - len(here))]
        rng = Streams([ids[k] for k in padded], seed, stage)
        with torch.no_grad():
            logits = model.logits(x[padded], rng, draws)[:, : len(here)]
        parts.append(logits.transpose(0, 1).cpu())
        on_batch(len(here))
    logits = torch.cat(parts)
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("need finite logits, got NaN or infinity: look at the weights, the dtype and the images")
    return logits


def decided(logits: Tensor, ties: str) -> tuple[dict[str, int], bool]:
    """The class of one image by each rule over its (draws,K) logits, and whether the vote's count was tied."""
    vote, tied = metrics.vote(logits.numpy(), ties)
    wide = logits.double()
    mean_logits, mean_softmax = int(wide.mean(dim=0).argmax()), int(wide.softmax(dim=1).mean(dim=0).argmax())
    return {"vote": vote, "mean_logits": mean_logits, "mean_softmax": mean_softmax}, tied
