"""The contracts of classifiers and denoisers: shapes, no randomness, no image that depends on another, a gradient."""

import functools
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dp.classifiers import Classifier, RandomizedClassifier
from dp.contracts.failure import Failure, Raised, called, difference
from dp.diffusion.denoisers import Denoiser
from dp.rng import Streams

SIGMAS = (0.1, 1.0, 5.0)  # of the noise at which a denoiser is called
TOLERANCE = 1e-4  # a network rounds otherwise for another number of images
FIXED = "the likely cause is dropout, noise or batch normalization of a network that is not in evaluation mode"
WHOLE_BATCH = "the likely cause is a mean or a normalization over the whole batch, or a network in training mode"


def of_classifier(classifier: Classifier, x: Tensor, labels: Tensor | None) -> list[Failure]:
    """The properties that a classifier lacks on images x (B,C,H,W), B >= 4, with labels (B,), if there are any."""
    try:
        return [*_frozen(classifier), *_of_logits(classifier, x, labels)]
    except Raised as error:
        return [error.failure]


def of_denoiser(denoiser: Denoiser, z: Tensor) -> list[Failure]:
    """The properties that a denoiser lacks on states z (B,C,H,W) in [-1,1], B >= 4. One with classes is also asked for
    its last class.
    """
    try:
        for sigma, label in itertools.product(SIGMAS, (None, denoiser.classes - 1) if denoiser.classes else (None,)):
            ask = functools.partial(_asked, denoiser, sigma, label)
            x0 = called("the denoiser", ask, z)
            if not isinstance(x0, Tensor) or (x0.shape, x0.dtype) != (z.shape, z.dtype):
                what = f"at sigma {sigma} it returned {_described(x0)} for {_described(z)}"
                return [Failure("shape", what, "return E[x0 | z] for each image, of the size and precision of z")]
            found = [*_finite(f"x0 at sigma {sigma}", x0), *_stands_alone(ask, z, x0)]
            if found:
                return found
        weak, strong = ((denoiser(z, sigma) - z).square().mean().item() for sigma in (0.02, SIGMAS[-1]))
    except Raised as error:
        return [error.failure]
    if weak < 0.1 * strong:
        return []
    what = f"it moves a state by {weak:.3g} (mean square) at sigma .02 and by {strong:.3g} at sigma {SIGMAS[-1]:.0f}"
    advice = "with little noise E[x0 | z] is nearly z: the likely cause is another scale of sigma, or [0,1] for [-1,1]"
    return [Failure("low noise", what, advice)]


def _asked(denoiser: Denoiser, sigma: float, label: int | None, z: Tensor) -> Tensor:
    """E[x0 | z], of all images for the same class."""
    return denoiser(z, sigma) if label is None else denoiser(z, sigma, torch.full((len(z),), label, device=z.device))


def _frozen(classifier: Classifier) -> Iterator[Failure]:
    training = [name or "the network" for name, module in classifier.net.named_modules() if module.training]
    moving = [name for name, value in classifier.named_parameters() if value.requires_grad]
    if training:
        what = f"{len(training)} modules are in training mode, such as {training[0]}"
        yield Failure("frozen", what, "call eval() after the network is made")
    if moving:
        what = f"{len(moving)} parameters ask for gradients, such as {moving[0]}"
        yield Failure("frozen", what, "call requires_grad_(False)")


def _of_logits(classifier: Classifier, x: Tensor, labels: Tensor | None) -> Iterator[Failure]:
    leaf, ask = x.clone().requires_grad_(), _with_noise(classifier)
    logits = called("the classifier", ask, leaf)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or (len(logits), logits.dtype) != (len(x), x.dtype):
        what = f"it returned {_described(logits)} for {_described(x)}"
        yield Failure("shape", what, "return logits (B,K), one row for each image")
        return
    if labels is not None and labels.max() >= logits.shape[1]:
        what = f"it has {logits.shape[1]} logits, and the labels go up to {int(labels.max())}"
        yield Failure("labels", what, "labels count from 0: give the network as many classes as the dataset has")
    found = [*_finite("a logit", logits), *_stands_alone(ask, x, logits.detach())]
    yield from found
    if not found:
        yield from _of_gradient(logits, leaf)
    features = called("features", classifier.features, x) if classifier.taps else []
    bad = [_described(f) for f in features if f.ndim != 4 or len(f) != len(x)]
    if bad or len(features) != len(classifier.taps):
        got = bad[0] if bad else f"{len(features)} features"
        yield Failure("taps", f"{got} for {len(classifier.taps)} taps", "name modules whose output is (B,C,h,w)")


def _with_noise(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """The classifier as a function of images; a randomized one has the same noise for the k-th image in every call."""
    if not isinstance(classifier, RandomizedClassifier):
        return classifier
    return lambda x: classifier(x, Streams(range(len(x)), 0, "contract"))


def _of_gradient(logits: Tensor, leaf: Tensor) -> Iterator[Failure]:
    gradient = None
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad(logits.square().sum(), leaf, allow_unused=True)
    if gradient is None:
        yield Failure("gradient", "the logits have no graph back to x", "take out torch.no_grad(), detach() and numpy")
    elif (gradient.flatten(1).abs().amax(1) == 0).any():
        what = f"it is zero for {int((gradient.flatten(1).abs().amax(1) == 0).sum())} of {len(leaf)} images"
        yield Failure("gradient", what, "the likely cause is rounding, or an activation that is saturated or dead")


def _finite(what: str, values: Tensor) -> Iterator[Failure]:
    if not bool(torch.isfinite(values).all()):
        share = 100 * (~torch.isfinite(values)).double().mean().item()
        yield Failure("finite", f"{what} is NaN or infinite ({share:.3g} % of them)", "look at the weights and scales")


def _stands_alone(function: Callable[[Tensor], Tensor], x: Tensor, out: Tensor) -> Iterator[Failure]:
    """A function of images gives the same again, and for an image the same beside others."""
    with torch.no_grad():
        again, half = function(x), len(x) // 2
        if not torch.equal(again, out):
            yield Failure("determinism", f"the same images gave another result, {difference(again, out)}", FIXED)
            return
        beside = function(torch.cat([x[:half], x[half:].flip(3) * 0.5]))[:half]
        if not torch.equal(beside, out[:half]):
            what = f"an image changes if only its batch mates change, {difference(beside, out[:half])}"
            yield Failure("batch mates", what, WHOLE_BATCH)
            return
        few = function(x[:half])
    if not torch.allclose(few, out[:half], rtol=TOLERANCE, atol=TOLERANCE):
        what = f"an image changes with the size of its batch, {difference(few, out[:half])}"
        yield Failure("batch size", what, WHOLE_BATCH)


def _described(value: object) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
