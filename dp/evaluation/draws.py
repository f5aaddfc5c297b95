"""Fresh samples of the scored defense, and the decisions by them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dp.defense.defended import Defended
from dp.rng import Streams
from dp.statistics import metrics


def fresh_samples(
    model: Defended,
    x: Tensor,
    ids: Sequence[int],
    seed: int,
    stage: str,
    samples: int,
    width: int,
    on_batch: Callable[[int], None] = lambda images: None,
    *,
    rng: int,
) -> Tensor:
    """Logits (B,samples,K), on the CPU, of images x (B,C,H,W) in [0,1].

    The images are scored in batches of `width`. The last batch is padded, so that no result depends on the other images
    in its batch. `stage` names the noise, and `rng` its generator. `on_batch(images)` is called after every batch.
    Raises ValueError for a logit that is not finite.
    """
    parts = []
    for first in range(0, len(x), width):
        batch = list(range(first, min(first + width, len(x))))
        padded = [*batch, *[batch[-1]] * (width - len(batch))]
        streams = Streams([ids[k] for k in padded], seed, stage, rng)
        with torch.no_grad():
            logits = model.logits(x[padded], streams, samples)[:, : len(batch)]
        parts.append(logits.transpose(0, 1).cpu())
        on_batch(len(batch))
    logits = torch.cat(parts)
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("need finite logits, got NaN or infinity: check the weights, the dtype and the images")
    return logits


def decided(logits: Tensor, ties: str) -> tuple[dict[str, int], bool]:
    """The predicted class of one image by each decision rule, and whether its vote was tied.

    `logits`: (samples,K); `ties`: how a tie is broken, see `metrics.vote`.
    """
    vote, tied = metrics.vote(logits.numpy(), ties)
    wide = logits.double()
    mean_logits, mean_softmax = int(wide.mean(dim=0).argmax()), int(wide.softmax(dim=1).mean(dim=0).argmax())
    return {"vote": vote, "mean_logits": mean_logits, "mean_softmax": mean_softmax}, tied
