"""Classifier: a network with its preprocessing and its attention taps. It takes images in [0,1]."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.compiled import Compiled, plain_calls
from dp.precision import narrowed
from dp.rng import Streams


class Classifier(nn.Module):
    """Logits (B,K) of images (B,C,H,W) in [0,1]. Preprocessing happens here and only here.

    `taps`: names of the modules whose outputs are the attention features, shallow to deep.
    `mean`, `std`: per channel, or None for a network that takes raw [0,1].
    `size`: the side to which images are resized (bilinear), or None.
    `compiled`: what calls the network where a run compiles it, see `Compiled`.
    Raises ValueError for a mean without a std and for taps that the network does not have.
    """

    def __init__(
        self,
        net: nn.Module,
        taps: Sequence[str] = (),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | None = None,
    ):
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError(f"need mean and std together or neither, got mean={mean}, std={std}")
        self.net = net.eval().requires_grad_(False)
        self.compiled: Compiled | None = None
        names = dict(net.named_modules())
        missing = [tap for tap in taps if tap not in names]
        if missing:
            raise ValueError(
                f"need taps that are modules of {type(net).__name__}, got {missing}; it has e.g. {list(names)[-4:]}"
            )
        self.taps = tuple(taps)
        self.size = size
        self.mean: Tensor | None
        self.std: Tensor | None
        self.register_buffer("mean", None if mean is None else torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", None if std is None else torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.size is not None and x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        if self.mean is not None and self.std is not None:
            x = (x - self.mean) / self.std
        return (self.compiled or self.net)(narrowed(x, self.net)).to(x.dtype)

    def features(self, x: Tensor) -> list[Tensor]:
        """The features (B,C,h,w) at each tap, shallow to deep, read by hooks that exist during this call only.

        Raises ValueError where the classifier has no taps.
        """
        if not self.taps:
            raise ValueError("need taps for an attention map, got none: name them in the classifier's yaml")
        outputs: dict[str, Tensor] = {}
        hooks = [
            self.net.get_submodule(tap).register_forward_hook(functools.partial(_keep, outputs, tap))
            for tap in self.taps
        ]
        try:
            with plain_calls():  # a compiled network does not see the hooks
                self(x)
        finally:
            for hook in hooks:
                hook.remove()
        return [outputs[tap].to(x.dtype) for tap in self.taps]

    def brief(self) -> "Classifier":
        """The classifier with as few network evaluations as it can make, to measure it and to see its logits' shape."""
        return self


class RandomizedClassifier(Classifier):
    """A classifier that draws noise: logits (B,K) = classifier(x, rng), x (B,C,H,W) in [0,1], one stream per image.

    It asks a denoiser `evaluations` times per image and call. It has no attention features.
    """

    evaluations: int

    def sample(self, x: Tensor, rng: Streams) -> Tensor:
        """One sample of the logits (B,K)."""
        raise NotImplementedError  # abstract

    def forward(self, x: Tensor, rng: Streams | None = None) -> Tensor:
        if rng is None:
            raise ValueError(
                "need a classifier without noise, because the purifier or the attack asks it without streams, got "
                f"{type(self).__name__}: choose another classifier"
            )
        return self.sample(x, rng)

    def features(self, x: Tensor) -> list[Tensor]:
        raise ValueError(
            f"need a classifier with taps for an attention map, got {type(self).__name__}, which has none: choose "
            "another classifier, or a purifier without an attention mask"
        )

    def brief(self) -> "RandomizedClassifier":
        raise NotImplementedError  # abstract


def _keep(outputs: dict[str, Tensor], tap: str, _module: nn.Module, _inputs: tuple, out: Tensor) -> None:
    outputs[tap] = out.clone()  # the next module may work in place
