"""Purification and then classification as a defense: exact gradients through all of it, samples in batches, and the
other gradients that attackers have used.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.classifiers import Classifier, RandomizedClassifier
from dp.compiled import differentiated_once
from dp.defense.interface import AuxiliaryLoss
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import with_identity
from dp.objectives import Loss, cross_entropy
from dp.precision import narrowed, tensor_cores
from dp.purifiers import none
from dp.purifiers.module import PurifierModule
from dp.rng import Streams, cat_draws, draws_of

Variant = Mapping[str, Any] | Callable[..., Tensor]  # changed hyperparameters, or another purifier
Method = TypeVar("Method", bound=Callable[..., Any])


def in_own_precision(method: Method) -> Method:
    """A decorator of the methods of `Defended` that call networks or differentiate them: they use TF32 if it does."""

    @functools.wraps(method)
    def inside(self: "Defended", *args: Any, **more: Any) -> Any:
        with tensor_cores(self.tf32), differentiated_once():
            return method(self, *args, **more)

    return cast(Method, inside)


class Defended(nn.Module):
    """classifier(purify(x)); each call draws its noise from the streams that it is given.

    `purify`: a purifier with its hyperparameters bound, a function or a module with weights of its own; `denoiser`:
    None only where the purifier uses none; `draws_per_call`: how many samples of every image share one network call,
    which changes the last bit of a result; `variants`: the method's own gradient variants by name, each a mapping of
    hyperparameters to change or a purifier to differentiate instead; `bpda`: put the identity in place of the
    purification's derivative (BPDA, Athalye et al. 2018); `tf32`: multiply in TF32, on a GPU. `nfe`: network
    evaluations of the last answer, per image and sample; those of a randomized classifier count, too.
    """

    def __init__(
        self,
        purify: Callable[..., Tensor],
        denoiser: Denoiser | None,
        classifier: Classifier,
        draws_per_call: int = 1,
        variants: Mapping[str, Variant] | None = None,
        bpda: bool = False,
        tf32: bool = False,
    ):
        if draws_per_call < 1:
            raise ValueError(f"need draws_per_call >= 1, got draws_per_call={draws_per_call}")
        super().__init__()
        # A partial is no module, so a module inside one is registered beside it, and a bare one is made a partial.
        self.purifier = functools.partial(purify) if isinstance(purify, nn.Module) else purify
        self.variants = dict(variants or {})
        callables = [purify, *(variant for variant in self.variants.values() if not isinstance(variant, Mapping))]
        networks = dict.fromkeys(f for f in map(unbound, callables) if isinstance(f, nn.Module))
        self.networks = nn.ModuleList(networks)
        self.denoiser = denoiser
        self.classifier = classifier
        self.draws_per_call = draws_per_call
        self.bpda = bpda
        self.tf32 = tf32
        self.nfe = 0
        self.on_purified: Callable[[Streams, Tensor], None] | None = None  # called with the noise and every x_hat

    @property
    def undefended(self) -> bool:
        """True if nothing is purified."""
        return unbound(self.purifier) is none.purify

    @property
    def own_network(self) -> nn.Module | None:
        """The purifier itself, if it is a module."""
        purify = unbound(self.purifier)
        return purify if isinstance(purify, nn.Module) else None

    @property
    def precision(self) -> tuple[torch.dtype, bool]:
        """The dtype of the classifier's weights (and of all networks that a run casts), and True if it uses TF32."""
        return narrowed(torch.empty(0), self.classifier.net).dtype, self.tf32

    def gradient_mode(self, name: str) -> "Defended":
        """See `Defense.gradient_mode`. Raises ValueError for a variant that this purifier does not have."""
        if name == "full":
            return self
        if name == "bpda":
            return self._with(self.purifier, self.denoiser, bpda=True)
        if name == "blind" or self.undefended:
            return self._with(none.purify, None, bpda=False)
        variant = self.variants.get(name)
        if variant is None or variant == {}:
            modes = ", ".join(["full", "bpda", "blind", *self.variants])
            raise ValueError(f"need a gradient variant {name} of the purifier for grad={name}, got none: use {modes}")
        purify = functools.partial(self.purifier, **variant) if isinstance(variant, Mapping) else variant
        return self._with(purify, self.denoiser, bpda=self.bpda)

    def gradient_modes(self, names: Sequence[str]) -> "Defended":
        """Those gradient modes one after another; of no names the defense itself."""
        return functools.reduce(lambda model, name: model.gradient_mode(name), names, self)

    def _with(self, purify: Callable[..., Tensor], denoiser: Denoiser | None, bpda: bool) -> "Defended":
        variants = {} if purify is none.purify else self.variants
        size = self.draws_per_call
        other = Defended(purify, denoiser, self.classifier, size, variants, bpda, self.tf32)
        other.on_purified = self.on_purified
        return other

    @in_own_precision
    def purify(self, x: Tensor, rng: Streams, *, on_step: Callable | None = None) -> Tensor:
        """x (B,C,H,W) in [0,1] -> x_hat in [0,1], with its graph; at the denoiser's own size, if it has one.
        `on_step(i, sigma, z, x0)` is called after every step of the purification.
        """
        before, size = self.evaluations, None if self.denoiser is None else self.denoiser.size
        if size is not None and x.shape[2:] != (size, size):
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.bpda):
            x_hat = self.purifier(x, self.denoiser, self.classifier, rng, on_step=on_step)
        if self.bpda:
            x_hat = with_identity(x_hat, x)
        self.nfe = self.evaluations - before
        if self.on_purified is not None:
            self.on_purified(rng, x_hat.detach())
        return x_hat

    @property
    def evaluations(self) -> int:
        """Network evaluations so far: of the denoiser, of the purifier's own networks and of a randomized classifier's
        denoiser.
        """
        own = self.own_network.nfe if isinstance(self.own_network, PurifierModule) else 0
        return own + sum(module.nfe for module in self.modules() if isinstance(module, Denoiser))

    @property
    def classifier_nfe(self) -> int:
        """Network evaluations of one answer of the classifier, per image: 0 unless it asks a denoiser."""
        return self.classifier.evaluations if isinstance(self.classifier, RandomizedClassifier) else 0

    @in_own_precision
    def classify(self, x_hat: Tensor, rng: Streams) -> Tensor:
        """Logits (B,K) of purified images (B,C,H,W). A randomized classifier draws its noise after the purifier."""
        if not isinstance(self.classifier, RandomizedClassifier):
            return self.classifier(x_hat)
        self.nfe += self.classifier_nfe
        return self.classifier(x_hat, rng)

    def forward(self, x: Tensor, rng: Streams) -> Tensor:
        """One sample: (B,C,H,W) -> (B,K) logits."""
        return self.classify(self.purify(x, rng), rng)

    def logits(self, x: Tensor, rng: Streams, samples: int) -> Tensor:
        """`samples` independent samples of every image: (samples,B,K). A defense that draws no noise is asked once, and
        its answer is repeated.
        """
        parts = []
        for ks, streams in self._calls(rng, samples):
            parts.append(self(x.repeat(len(ks), 1, 1, 1), streams).unflatten(0, (len(ks), len(x))))
            if not streams.used:
                return parts[0][:1].expand(samples, -1, -1)
        return torch.cat(parts)

    def logits_of(
        self, queries: Sequence[tuple[int, int]], images: Sequence[Tensor], rng: Streams, samples: int
    ) -> Tensor:
        """`samples` independent samples of images[m][b] for the queries (m, b), (samples,len(queries),K), with the
        noise of `logits` in slot b. Every network call is as wide as a full one, B x `draws_per_call`, whatever is in
        it.
        """
        width, todo = len(images[0]) * self.draws_per_call, [(m, b, k) for k in range(samples) for m, b in queries]
        parts = []
        while todo:
            call, todo = todo[:width], todo[width:]
            padded = call + [call[0]] * (width - len(call))
            streams = draws_of(rng, [(b, k) for _, b, k in padded])
            parts.append(self(torch.stack([images[m][b] for m, b, _ in padded]), streams)[: len(call)])
            if not streams.used:  # nothing is drawn: the first sample is all
                todo = [(m, b, k) for m, b, k in todo if k == 0]
        logits = finite(torch.cat(parts))
        drawn = len(logits) // len(queries)
        logits = logits[: drawn * len(queries)].unflatten(0, (drawn, len(queries)))
        return logits if drawn == samples else logits[:1].expand(samples, -1, -1)

    def loss(self, x: Tensor, y: Tensor, rng: Streams, samples: int, loss: Loss = cross_entropy) -> Tensor:
        """Mean loss over samples, (B,); of a loss with columns (B,M), the mean of each."""
        logits = self.logits(x, rng, samples)  # (samples,B,K)
        return finite(loss(logits.flatten(0, 1), y.repeat(samples)).unflatten(0, (samples, len(x))).mean(dim=0))

    @in_own_precision
    def loss_gradient(
        self,
        x: Tensor,
        y: Tensor,
        rng: Streams,
        samples: int,
        loss: Loss = cross_entropy,
        auxiliary: AuxiliaryLoss | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean loss over samples, (B,), and its gradient in x, (B,C,H,W): expectation over transformation (Athalye et
        al. 2018). Of a loss with columns (B,M) the first is differentiated and the means of all are returned.

        `auxiliary`: a term that is added to the first column, from the images and the states of their purification,
        the denoiser's inputs z with their sigma.
        """
        total, grad = x.new_zeros(()), torch.zeros_like(x)
        for ks, streams in self._calls(rng, samples):
            copies, states = x.detach().repeat(len(ks), 1, 1, 1).requires_grad_(), []
            on_step = None if auxiliary is None else lambda i, sigma, z, x0, states=states: states.append((sigma, z))
            logits = self.classify(self.purify(copies, streams, on_step=on_step), streams)
            values = loss(logits, y.repeat(len(ks)))
            first = values if values.dim() == 1 else values[:, 0]
            if auxiliary is not None:
                first = first + auxiliary(copies, states)
                values = first if values.dim() == 1 else torch.cat([first.unsqueeze(1), values[:, 1:]], dim=1)
            g = _gradient(first.sum(), copies)
            values, g = values.detach().unflatten(0, (len(ks), len(x))), g.unflatten(0, (len(ks), len(x)))
            if not streams.used:
                check_finite(values[0], g[0])
                return values[0], g[0]
            total, grad = total + values.sum(dim=0), grad + g.sum(dim=0)
        total, grad = total / samples, grad / samples
        check_finite(total, grad)
        return total, grad

    def purified(self, x: Tensor, rng: Streams, samples: int) -> Tensor:
        """`samples` purifications of every image, (samples,B,C,H,W), without a graph; the k-th shares its noise with
        `logits(x, rng, samples)[k]`.
        """
        with torch.no_grad():
            parts = [
                self.purify(x.repeat(len(ks), 1, 1, 1), streams).unflatten(0, (len(ks), len(x)))
                for ks, streams in self._calls(rng, samples)
            ]
        return torch.cat(parts)

    @in_own_precision
    def vjp(self, x: Tensor, rng: Streams, which: Sequence[int], direction: Tensor) -> Tensor:
        """The vector-Jacobian product direction^T dx_hat / dx, (B,C,H,W), of sample which[b] of each image.
        `direction`: of x_hat's shape.
        """
        leaf = x.detach().requires_grad_()
        return finite(_gradient(self.purify(leaf, rng.draw(which)), leaf, direction))

    def _calls(self, rng: Streams, samples: int) -> Iterator[tuple[range, Streams]]:
        """The samples in packs of `draws_per_call`, each with the streams for its copies."""
        for first in range(0, samples, self.draws_per_call):
            ks = range(first, min(first + self.draws_per_call, samples))
            yield ks, cat_draws(rng, ks)


def unbound(purify: Callable[..., Any]) -> Callable[..., Any]:
    """The purifier itself, without the hyperparameters that it is bound to."""
    return unbound(purify.func) if isinstance(purify, functools.partial) else purify


def brief(model: Defended) -> Defended:
    """The bare classifier of a defense, with as few network evaluations as it can make."""
    return Defended(none.purify, None, model.classifier.brief())


def _gradient(out: Tensor, leaf: Tensor, direction: Tensor | None = None) -> Tensor:
    """direction^T dout / dleaf, of leaf's shape. Raises ValueError where autograd knows of none."""
    grad = torch.autograd.grad(out, leaf, direction, allow_unused=True)[0] if out.requires_grad else None
    if grad is None:
        raise ValueError(
            "need a defense with a gradient in the image, got one that is cut off from it (detach, no_grad?): "
            "if the method has none, set threat_model.grad=bpda, and declare it (docs/extending.md)"
        )
    return grad


def finite(values: Tensor) -> Tensor:
    """The same values. Raises ValueError for a NaN or an infinity: a NaN wins no comparison, so that a broken image
    would pass for a robust one.
    """
    check_finite(values)
    return values


def check_finite(*values: Tensor) -> None:
    """Raises the ValueError of `finite`. The host waits once, whatever is checked."""
    if not bool(torch.stack([torch.isfinite(one).all() for one in values]).all()):
        raise ValueError(
            "need finite losses and gradients, got NaN or infinity: look at the weights, the dtype and the images"
        )
