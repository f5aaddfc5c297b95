"""Defended: the classifier after purification, both reachable, with draws batched and exact gradients through the whole
of it.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.attacks.objectives import Loss, cross_entropy
from dp.classifiers import Classifier
from dp.denoisers import Denoiser
from dp.rng import Streams, cat_draws


class Defended(nn.Module):
    """classifier(purify(x)); each call draws its noise from the streams it is given.

    `purify`: a purifier with its hyperparameters bound; `denoiser`: None only where it uses none;
    `draws_per_call`: how many draws of every image share one network call (part of what a result means, in the last
    bit).
    """

    def __init__(self, purify: Callable, denoiser: Denoiser | None, classifier: Classifier, draws_per_call: int = 1):
        if draws_per_call < 1:
            raise ValueError(f"need draws_per_call >= 1, got draws_per_call={draws_per_call}")
        super().__init__()
        self.purifier = purify
        self.denoiser = denoiser
        self.classifier = classifier
        self.draws_per_call = draws_per_call
        self.nfe = 0  # network evaluations of the denoiser in the last purification, per image and draw

    def purify(self, x: Tensor, rng: Streams, *, on_step: Callable | None = None) -> Tensor:
        """x (B,C,H,W) in [0,1] -> x_hat in [0,1], with its graph; at the denoiser's own size, if it has one."""
        before, size = (0, None) if self.denoiser is None else (self.denoiser.nfe, self.denoiser.size)
        if size is not None and x.shape[2:] != (size, size):
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        x_hat = self.purifier(x, self.denoiser, self.classifier, rng, on_step=on_step)
        self.nfe = 0 if self.denoiser is None else self.denoiser.nfe - before
        return x_hat

    def forward(self, x: Tensor, rng: Streams) -> Tensor:
        """One draw: (B,C,H,W) -> (B,K) logits."""
        return self.classifier(self.purify(x, rng))

    def logits(self, x: Tensor, rng: Streams, draws: int) -> Tensor:
        """`draws` independent draws of every image: (draws,B,K). A defence that draws nothing is asked once and
        repeated.
        """
        parts = []
        for ks, streams in self._calls(rng, draws):
            parts.append(self(x.repeat(len(ks), 1, 1, 1), streams).unflatten(0, (len(ks), len(x))))
            if not streams.used:
                return parts[0][:1].expand(draws, -1, -1)
        return torch.cat(parts)

    def loss(self, x: Tensor, y: Tensor, rng: Streams, draws: int, loss: Loss = cross_entropy) -> Tensor:
        """Mean loss over draws, (B,); of a loss with columns (B,M), the mean of each."""
        logits = self.logits(x, rng, draws)  # (draws,B,K)
        return _finite(loss(logits.flatten(0, 1), y.repeat(draws)).unflatten(0, (draws, len(x))).mean(dim=0))

    def loss_gradient(
        self, x: Tensor, y: Tensor, rng: Streams, draws: int, loss: Loss = cross_entropy
    ) -> tuple[Tensor, Tensor]:
        """Mean loss over draws, (B,), and its gradient in x, (B,C,H,W): expectation over transformation (Athalye et al.
        2018). Of a loss with columns (B,M) the first is differentiated and the means of all are returned.
        """
        total, grad = x.new_zeros(()), torch.zeros_like(x)
        for ks, streams in self._calls(rng, draws):
            copies = x.detach().repeat(len(ks), 1, 1, 1).requires_grad_()
            values = loss(self(copies, streams), y.repeat(len(ks)))
            (g,) = torch.autograd.grad((values if values.dim() == 1 else values[:, 0]).sum(), copies)
            values, g = values.detach().unflatten(0, (len(ks), len(x))), g.unflatten(0, (len(ks), len(x)))
            if not streams.used:
                return _finite(values[0]), _finite(g[0])
            total, grad = total + values.sum(dim=0), grad + g.sum(dim=0)
        return _finite(total / draws), _finite(grad / draws)

    def _calls(self, rng: Streams, draws: int) -> Iterator[tuple[range, Streams]]:
        """The draws in packs of `draws_per_call`, each with the streams for its copies."""
        for first in range(0, draws, self.draws_per_call):
            ks = range(first, min(first + self.draws_per_call, draws))
            yield ks, cat_draws(rng, ks)


def activation_bytes(model: Defended, x: Tensor, rng: Streams) -> int:
    """Bytes that autograd stores for one image and one draw of the whole defence; parameters are not counted."""
    own = {p.data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        if saved.data_ptr() not in own:
            sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        logits = model(x[:1].detach().requires_grad_(), rng.select([0]))
    assert len(logits) == 1
    return sum(sizes.values())


def _finite(values: Tensor) -> Tensor:
    """A NaN must stop the run: it would never win a comparison, and a broken image would pass for a robust one."""
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            "need finite losses and gradients, got NaN or infinity: look at the weights, the dtype and the images"
        )
    return values
