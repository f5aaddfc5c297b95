"""Selection of the strongest of several attacked points, per image, with samples that chose none of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dp.attacks.state import where
from dp.defense.interface import Defense
from dp.objectives import Loss, margin
from dp.rng import Streams


def strongest(
    model: Defense,
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
