"""Answers of a defense, purified images and logits of one call, and how far two answers are apart."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from dp.audit.reruns import watched
from dp.defense.defended import Defended
from dp.rng import Streams

SAMPLES = 3  # samples of every image in one answer
CLOSE = 1e-3  # answers that should agree may differ by this share of what other noise changes: rounding
LEAST = 0.01  # change by other noise that counts at least: in [0,1] for pixels, of the logits' spread for logits


class Answer(NamedTuple):
    """The answer of a defense to B images with S samples each, from one call."""

    x_hat: Tensor  # (S,B,C,H,W); S may be smaller for a defense that draws no noise
    logits: Tensor  # (S,B,K)
    used: bool  # True if the defense drew from the noise that it was given

    def of(self, index: Sequence[int]) -> Self:
        """The answer to these images."""
        return self._replace(x_hat=self.x_hat[:, index], logits=self.logits[:, index])


class Scale(NamedTuple):
    """How much other noise changes an answer."""

    x_hat: float  # mean absolute change of a pixel
    logits: float  # mean absolute change of a logit


def answer(model: Defended, x: Tensor, rng: Streams, samples: int = SAMPLES) -> Answer:
    """The answer to images x (B,C,H,W), without a graph."""
    record, twin = recorded(model, len(x))
    with torch.no_grad():
        logits = twin.logits(x, rng, samples)
    return Answer(torch.cat(record.x_hat), logits, record.used)


class Record:
    """The purified images of one call, and whether the noise was used."""

    def __init__(self) -> None:
        self.x_hat: list[Tensor] = []
        self.used = False


def recorded(model: Defended, images: int) -> tuple[Record, Defended]:
    """A copy of the defense that records the purifications of so many images."""
    record = Record()

    def see(rng: Streams, x_hat: Tensor) -> None:
        record.x_hat.append(x_hat.unflatten(0, (-1, images)))
        record.used |= rng.used

    return record, watched(model, see)


def change(first: Answer, second: Answer) -> tuple[Tensor, Tensor]:
    """(B,), (B,): the mean absolute change of the pixels and of the logits of every image."""
    samples = min(len(first.x_hat), len(second.x_hat))
    pixels = (first.x_hat[:samples] - second.x_hat[:samples]).abs().flatten(2).mean(dim=(0, 2))
    return pixels, (first.logits - second.logits).abs().mean(dim=(0, 2))


def scale(first: Answer, other_noise: Answer) -> Scale:
    """The change by other noise, which is at least `LEAST`."""
    pixels, logits = change(first, other_noise)
    spread = float((first.logits.amax(dim=2) - first.logits.amin(dim=2)).mean())
    return Scale(max(float(pixels.mean()), LEAST), max(float(logits.mean()), LEAST * spread, torch.finfo().tiny))


def differ(first: Answer, second: Answer, by: Scale) -> Tensor:
    """(B,): True for the images whose two answers differ by more than rounding."""
    pixels, logits = change(first, second)
    return (pixels > CLOSE * by.x_hat) | (logits > CLOSE * by.logits)
