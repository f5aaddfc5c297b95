"""Defended: the classifier after purification, both reachable, with draws batched, exact gradients through the whole of
it, and the other gradients that attackers have used.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.defense.interface import Along
from dp.diffusion.denoisers import Denoiser
from dp.objectives import Loss, cross_entropy
from dp.purifiers import none
from dp.rng import Streams, cat_draws, draws_of


class Defended(nn.Module):
    """classifier(purify(x)); each call draws its noise from the streams it is given.

    `purify`: a purifier with its hyperparameters bound; `denoiser`: None only where it uses none;
    `draws_per_call`: how many draws of every image share one network call (part of what a result means, in the last
    bit); `others`: hyperparameters that another view of this defence changes, by the view's name; `identity`: put the
    identity in place of the purification's derivative (BPDA, Athalye et al. 2018).
    """

    def __init__(
        self,
        purify: Callable,
        denoiser: Denoiser | None,
        classifier: Classifier,
        draws_per_call: int = 1,
        others: Mapping[str, Mapping[str, Any]] | None = None,
        identity: bool = False,
    ):
        if draws_per_call < 1:
            raise ValueError(f"need draws_per_call >= 1, got draws_per_call={draws_per_call}")
        super().__init__()
        self.purifier = purify
        self.denoiser = denoiser
        self.classifier = classifier
        self.draws_per_call = draws_per_call
        self.others = dict(others or {})
        self.identity = identity
        self.nfe = 0  # network evaluations of the denoiser in the last purification, per image and draw

    def view(self, grad: str) -> "Defended":
        """This defence as an attacker sees it who differentiates `grad`: `full` (itself), `bpda` (itself, with the
        identity as the purification's derivative), `blind` (the bare classifier), or one of `others`, such as
        `surrogate`. Raises ValueError for a view that this purifier has not.
        """
        if grad == "full":
            return self
        if grad == "bpda":
            parts = (self.purifier, self.denoiser, self.classifier, self.draws_per_call)
            return Defended(*parts, others=self.others, identity=True)
        if grad == "blind" or self.denoiser is None:
            return Defended(none.purify, None, self.classifier, self.draws_per_call)
        if not self.others.get(grad):
            raise ValueError(
                f"need a mapping {grad}: in the purifier's yaml for grad={grad}, got none: use threat_model.grad=full"
            )
        purify = functools.partial(self.purifier, **self.others[grad])
        return Defended(purify, self.denoiser, self.classifier, self.draws_per_call, self.others, self.identity)

    def purify(self, x: Tensor, rng: Streams, *, on_step: Callable | None = None) -> Tensor:
        """x (B,C,H,W) in [0,1] -> x_hat in [0,1], with its graph; at the denoiser's own size, if it has one."""
        before, size = (0, None) if self.denoiser is None else (self.denoiser.nfe, self.denoiser.size)
        if size is not None and x.shape[2:] != (size, size):
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.identity):
            x_hat = self.purifier(x, self.denoiser, self.classifier, rng, on_step=on_step)
        if self.identity:
            x_hat = x_hat + (x - x.detach())  # plus exactly zero
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

    def logits_of(self, asked: Sequence[tuple[int, int]], images: Sequence[Tensor], rng: Streams, draws: int) -> Tensor:
        """`draws` independent draws of images[m][b] for the pairs (m, b) that are asked about, (draws,len(asked),K),
        with the noise of `logits` in lane b. Every network call is as wide as a full one, B x `draws_per_call`, whoever
        is in it.
        """
        wide, todo = len(images[0]) * self.draws_per_call, [(m, b, k) for k in range(draws) for m, b in asked]
        parts = []
        while todo:
            here, todo = todo[:wide], todo[wide:]
            full = here + [here[0]] * (wide - len(here))
            streams = draws_of(rng, [(b, k) for _, b, k in full])
            parts.append(self(torch.stack([images[m][b] for m, b, _ in full]), streams)[: len(here)])
            if not streams.used:  # nothing is drawn: the first draw is all
                todo = [(m, b, k) for m, b, k in todo if k == 0]
        found = finite(torch.cat(parts))
        draws_seen = len(found) // len(asked)
        found = found[: draws_seen * len(asked)].unflatten(0, (draws_seen, len(asked)))
        return found if draws_seen == draws else found[:1].expand(draws, -1, -1)

    def loss(self, x: Tensor, y: Tensor, rng: Streams, draws: int, loss: Loss = cross_entropy) -> Tensor:
        """Mean loss over draws, (B,); of a loss with columns (B,M), the mean of each."""
        logits = self.logits(x, rng, draws)  # (draws,B,K)
        return finite(loss(logits.flatten(0, 1), y.repeat(draws)).unflatten(0, (draws, len(x))).mean(dim=0))

    def loss_gradient(
        self,
        x: Tensor,
        y: Tensor,
        rng: Streams,
        draws: int,
        loss: Loss = cross_entropy,
        along: Along | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean loss over draws, (B,), and its gradient in x, (B,C,H,W): expectation over transformation (Athalye et al.
        2018). Of a loss with columns (B,M) the first is differentiated and the means of all are returned.

        `along`: a term that is added to the first, from the images and the states of their purification, the
        denoiser's inputs z with their sigma.
        """
        total, grad = x.new_zeros(()), torch.zeros_like(x)
        for ks, streams in self._calls(rng, draws):
            copies, states = x.detach().repeat(len(ks), 1, 1, 1).requires_grad_(), []
            seen = None if along is None else lambda i, sigma, z, x0, states=states: states.append((sigma, z))
            values = loss(self.classifier(self.purify(copies, streams, on_step=seen)), y.repeat(len(ks)))
            first = values if values.dim() == 1 else values[:, 0]
            if along is not None:
                first = first + along(copies, states)
                values = first if values.dim() == 1 else torch.cat([first.unsqueeze(1), values[:, 1:]], dim=1)
            g = _gradient(first.sum(), copies)
            values, g = values.detach().unflatten(0, (len(ks), len(x))), g.unflatten(0, (len(ks), len(x)))
            if not streams.used:
                return finite(values[0]), finite(g[0])
            total, grad = total + values.sum(dim=0), grad + g.sum(dim=0)
        return finite(total / draws), finite(grad / draws)

    def purified(self, x: Tensor, rng: Streams, draws: int) -> Tensor:
        """`draws` purifications of every image, (draws,B,C,H,W), without a graph; the k-th shares its noise with
        `logits(x, rng, draws)[k]`.
        """
        with torch.no_grad():
            parts = [
                self.purify(x.repeat(len(ks), 1, 1, 1), streams).unflatten(0, (len(ks), len(x)))
                for ks, streams in self._calls(rng, draws)
            ]
        return torch.cat(parts)

    def pull_back(self, x: Tensor, rng: Streams, which: Sequence[int], direction: Tensor) -> Tensor:
        """The vector-Jacobian product direction^T dx_hat / dx, (B,C,H,W), of draw which[b] of each image.
        `direction`: of x_hat's shape.
        """
        leaf = x.detach().requires_grad_()
        return finite(_gradient(self.purify(leaf, rng.draw(which)), leaf, direction))

    def _calls(self, rng: Streams, draws: int) -> Iterator[tuple[range, Streams]]:
        """The draws in packs of `draws_per_call`, each with the streams for its copies."""
        for first in range(0, draws, self.draws_per_call):
            ks = range(first, min(first + self.draws_per_call, draws))
            yield ks, cat_draws(rng, ks)


def _gradient(out: Tensor, leaf: Tensor, direction: Tensor | None = None) -> Tensor:
    """direction^T dout / dleaf, of leaf's shape. Raises ValueError where autograd knows of none."""
    found = torch.autograd.grad(out, leaf, direction, allow_unused=True)[0] if out.requires_grad else None
    if found is None:
        raise ValueError(
            "need a defence with a gradient in the image, got one that is cut off from it (detach, no_grad?)"
        )
    return found


def finite(values: Tensor) -> Tensor:
    """A NaN must stop the run: it would never win a comparison, and a broken image would pass for a robust one."""
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            "need finite losses and gradients, got NaN or infinity: look at the weights, the dtype and the images"
        )
    return values
