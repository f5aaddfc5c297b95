"""Selection of the strongest of several attacked points, per image, with samples that chose none of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dp.attacks.state import where
from dp.defense.interface import Defense
from dp.objectives import Loss, margin
from dp.rng import Streams
from dp.transfer import sent


def strongest(
    model: Defense,
    candidates: Sequence[Any],
    y: Tensor,
    rng: Streams,
    samples: int,
    by: Loss = margin,
    among: Tensor | None = None,
) -> Any:
    """Per image the candidate with the largest mean margin (or mean of `by`) over `samples` samples with the noise of
    `rng`, which all candidates share; a tie goes to the first. Candidates: images (B,C,H,W), or tuples of tensors that
    begin with them. `among`: the images (B,) to choose for; of the others the first candidate stays. Equal images with
    equal noise are evaluated once.

    The samples must be none that chose the candidates: the largest of many noisy scores is biased upwards.
    """
    images = [one if isinstance(one, Tensor) else one[0] for one in candidates]
    slots = range(len(y)) if among is None else among.nonzero()[:, 0].tolist()
    places: dict[tuple[bytes, bytes], int] = {}  # noise and image -> its query
    queries, index = [], torch.zeros(len(images), len(y), dtype=torch.long)
    for m, pixels in enumerate(torch.stack(images).detach().cpu()):
        for b in slots:
            place = places.setdefault((rng.keys[b], pixels[b].numpy().tobytes()), len(queries))
            queries += [(m, b)] if place == len(queries) else []
            index[m, b] = place
    labels = y[sent(torch.tensor([b for _, b in queries]), y.device)]
    with torch.no_grad():
        logits = model.logits_of(queries, images, rng, samples)
    values = by(logits.flatten(0, 1), labels.repeat(samples)).unflatten(0, (samples, len(queries))).mean(dim=0)
    values = values[sent(index, values.device)]  # (M,B)
    best, chosen = values[0], candidates[0]
    for value, candidate in zip(values[1:], candidates[1:], strict=True):
        chosen, best = where(value > best, candidate, chosen), torch.maximum(value, best)
    return chosen
