"""How many bytes a defense stores for its backward pass."""

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from dp.defense.defended import Defended, brief
from dp.rng import Streams

PROBED = 4  # network calls that are measured: a step of a purifier may make several, not all of them alike


class PerCall(NamedTuple):
    """What one image and one sample need: bytes for each network call of the purification, and for the classifier."""

    call: float
    classifier: int


class _Stored:
    """Counts the bytes that autograd stores. It ends the pass when a call begins for which there is no room.

    Weights are not counted, neither are those of a purifier's own networks. `calls`: how many are counted at most;
    `room`: bytes that the probe may store.
    """

    class Enough(Exception):
        """The measurement is complete."""

    def __init__(self, model: Defended, calls: float = float("inf"), room: float = float("inf")):
        self.model, self.most, self.room = model, calls, room
        self.own = {p.data_ptr() for p in model.parameters()}
        self.tensors: list[tuple[weakref.ref, int, int]] = []
        self.begun = model.evaluations
        self.calls, self.bytes = 0, 0  # of the calls that are complete
        self.whole = False  # True if the pass came to its end, with the classifier

    def __call__(self, x: Tensor, rng: Streams) -> None:
        """One sample of one image x (1,C,H,W)."""
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved):
                logits = self.model(x.detach().requires_grad_(), rng)
        except self.Enough:
            return
        assert len(logits) == 1
        self.calls, self.bytes, self.whole = self.model.evaluations - self.begun, self._alive(), True

    def _pack(self, saved: Tensor) -> Tensor:
        calls = self.model.evaluations - self.begun - 1  # the calls before the one that is now being made
        if calls > self.calls:
            self.calls, self.bytes = calls, self._alive()
            if calls >= self.most or self.bytes * (calls + 1) / calls > self.room:
                raise self.Enough
        if saved.data_ptr() not in self.own:
            saved, storage = saved.detach(), saved.untyped_storage()  # itself, it would hold the graph that holds it
            self.tensors.append((weakref.ref(saved), storage.data_ptr(), storage.nbytes()))
        return saved

    def _alive(self) -> int:
        return sum({at: size for alive, at, size in self.tensors if alive() is not None}.values())  # not recomputed


def activation_bytes(model: Defended, x: Tensor, rng: Streams) -> int:
    """Bytes that autograd stores for one image of x (B,C,H,W) and one sample of the whole defense. Weights are not
    counted, neither are those of a purifier's own networks.
    """
    stored = _Stored(model)
    stored(x[:1], rng.select([0]))
    return stored.bytes


def bytes_per_call(model: Defended, x: Tensor, rng: Streams, room: float = float("inf")) -> PerCall:
    """What one image of x (B,C,H,W) and one sample of a defense store, on average over its first `PROBED` network calls
    with all that is done between them. A gradient that the purifier takes itself is part of it, and so are the calls of
    a randomized classifier.

    The purification is not run to its end. It also stops where one more call would store more than `room` bytes; one
    call is always measured.
    """
    classifier = 0 if model.classifier_nfe else activation_bytes(brief(model), x, rng)
    stored = _Stored(Defended(model.purifier, model.denoiser, model.classifier.brief()), PROBED, room)
    stored(x[:1], rng.select([0]))
    purification = max(0, stored.bytes - (classifier if stored.whole else 0))
    return PerCall(purification / max(1, stored.calls), classifier)
