"""The contract of a purifier: shape, range, noise from its streams alone, independence of batch and grad mode, a
gradient.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from dp.contracts.failure import Failure, Raised, called, difference
from dp.defense.defended import Defended
from dp.rng import Streams
from dp.subset import Subset

SIZE_TOLERANCE = 1e-4  # a network rounds otherwise for another number of images
GRAD_MODE_TOLERANCE = 1e-6  # an image is scored without a graph and attacked with one
STRANGERS = 1000  # ids of images that are put beside others
FIXED = "draw noise from rng only, and keep no memory between calls"
WHOLE_BATCH = "the likely cause is a mean, norm or maximum over the whole batch: take it over dim=(1, 2, 3)"
GRADIENT = "if the method has none, write gradient: none and exceptions: {gradient: REASON} into its yaml"


def failures(model: Defended, images: Subset, honest: str | None = None) -> list[Failure]:
    """The properties of the contract that the purifier of `model` does not have on these images, at least four.

    `honest`: the gradient mode that its yaml names in place of the gradient that it does not have; this mode must have
    a gradient.
    """
    try:
        found = _of_values(model, images)
        if not found:
            found = list(_of_gradient(model, images))
            if honest is not None:
                other = _of_gradient(model.gradient_mode(honest), images)
                found += [failure._replace(name=f"gradient mode {honest}") for failure in other]
    except Raised as error:
        return [error.failure]
    return found


def _purified(model: Defended, x: Tensor, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return called("purify", model.purify, x.clone(), Streams(ids, 7, "adv"))


def _of_values(model: Defended, images: Subset) -> list[Failure]:
    """The first failures of the values. Later properties are not checked: they would fail for the same cause."""
    x, ids = images.x, images.ids
    given = x.clone()
    with torch.no_grad():
        x_hat = called("purify", model.purify, given, Streams(ids, 7, "adv"))
    found = list(_of_one_call(x, given, x_hat))
    if found:
        return found
    again = _purified(model, x, ids)
    if not torch.equal(again, x_hat):
        return [_undetermined(model, images, difference(again, x_hat))]
    return list(_of_batches(model, images, x_hat))


def _of_one_call(x: Tensor, given: Tensor, x_hat: object) -> Iterator[Failure]:
    if not isinstance(x_hat, Tensor) or (x_hat.shape, x_hat.dtype) != (x.shape, x.dtype):
        got = f"{tuple(x_hat.shape)} {x_hat.dtype}" if isinstance(x_hat, Tensor) else type(x_hat).__name__
        advice = "return an image for each image, of the size and the precision that were given"
        yield Failure("shape", f"purify returned {got} for {tuple(x.shape)} {x.dtype}", advice)
        return
    if not torch.equal(given, x):
        advice = "write x = x + ... in place of x += ..., and clamp in place of clamp_, or work on x.clone()"
        yield Failure("input", f"purify changed x in place, {difference(given, x)}", advice)
    if not bool(torch.isfinite(x_hat).all()):
        share = 100 * (~torch.isfinite(x_hat)).double().mean().item()
        yield Failure("finite", f"{share:.3g} % of x_hat is NaN or infinite", "look for a division by zero and roots")
    elif x_hat.min() < 0 or x_hat.max() > 1:
        found = f"x_hat reaches from {x_hat.min().item():.3g} to {x_hat.max().item():.3g}, need [0, 1]"
        yield Failure("range", found, "clamp it; to_01 does so for states in [-1, 1]")


def _undetermined(model: Defended, images: Subset, how: str) -> Failure:
    """Two calls differ. The cause is torch's own generator if they agree once it is set to one state."""
    tries = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            tries.append(_purified(model, images.x, images.ids))
    cause = "the cause is torch.randn, torch.rand or dropout" if torch.equal(*tries) else "torch's generator is not it"
    what = f"the same images and streams gave other results, {how}"
    return Failure("determinism", what, f"{cause}: {FIXED} (rng.randn_like, rng.uniform_like)")


def _of_batches(model: Defended, images: Subset, x_hat: Tensor) -> Iterator[Failure]:
    """Half of the batch is exchanged, then the order is reversed, then the batch is smaller."""
    x, ids, half = images.x, images.ids, len(images.x) // 2
    others = torch.cat([x[:half], 1 - x[half:].flip(3)])
    strangers = torch.cat([ids[:half], ids[half:] + STRANGERS])
    beside = _purified(model, others, strangers)[:half]
    if not torch.equal(beside, x_hat[:half]):
        what = f"an image changes if only its batch mates change, {difference(beside, x_hat[:half])}"
        yield Failure("batch mates", what, WHOLE_BATCH)
        return
    back = torch.arange(len(x) - 1, -1, -1)
    turned = _purified(model, x[back], ids[back])[back]
    if not torch.equal(turned, x_hat):
        what = f"an image changes with its place in the batch, {difference(turned, x_hat)}"
        advice = f"the likely cause is noise of the place, such as torch.manual_seed and torch.randn: {FIXED}"
        yield Failure("order", what, advice)
    few = _purified(model, x[:half], ids[:half])
    if not torch.allclose(few, x_hat[:half], rtol=0, atol=SIZE_TOLERANCE):
        what = f"an image changes with the size of its batch, {difference(few, x_hat[:half])}"
        yield Failure("batch size", what, WHOLE_BATCH)


def _of_gradient(model: Defended, images: Subset) -> Iterator[Failure]:
    """With a graph, x_hat is the same image. The derivative of the sum of its squares in x must be there, finite, and
    not zero for any image.
    """
    leaf = images.x.clone().requires_grad_()
    out = called("purify", model.purify, leaf, Streams(images.ids, 7, "adv"))
    scored = _purified(model, images.x, images.ids)
    if not torch.allclose(out.detach(), scored, rtol=0, atol=GRAD_MODE_TOLERANCE):
        what = f"x_hat is another with a graph than under torch.no_grad(), {difference(out.detach(), scored)}"
        cause = "the likely cause is torch.is_grad_enabled(), requires_grad, or an inner gradient that is cut off"
        yield Failure("grad mode", what, f"{cause}: the attack would see another defense than the one that is scored")
        return
    gradient = None
    if out.requires_grad:
        (gradient,) = torch.autograd.grad(out.square().sum(), leaf, allow_unused=True)
    if gradient is None:
        cause = "torch.no_grad(), detach(), .data or numpy stands between x and x_hat"
        yield Failure("gradient", "x_hat has no graph back to x", f"{cause}: take it out; {GRADIENT}")
        return
    if not bool(torch.isfinite(gradient).all()):
        share = 100 * (~torch.isfinite(gradient)).double().mean().item()
        yield Failure("gradient", f"{share:.3g} % of it is NaN or infinite", "look for roots and divisions at zero")
        return
    zero = [i for i, one in enumerate(gradient.flatten(1).abs().amax(1)) if one == 0]
    if zero:
        what = f"it is zero at every pixel of {len(zero)} of {len(leaf)} images"
        cause = "the likely cause is rounding (round, floor, a comparison, argmax), whose derivative is zero"
        yield Failure("gradient", what, f"{cause}; {GRADIENT}")
