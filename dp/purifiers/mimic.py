"""MimicDiffusion (Song et al. 2024, arXiv 2312.04802): generation from pure noise that the input image guides."""

import functools
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dp.classifiers import Classifier
from dp.compiled import plain_calls
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.guided import guided_step
from dp.diffusion.sampling import OnStep, ancestral_step, noise_levels, to_01, to_pm1
from dp.rng import Streams


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    t: float,
    end: float,
    steps: int,
    guided: Sequence[int],
    pull: float,
    width: float | None = None,
    guide_through_network: bool = False,
    clamp: str = "plain",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by a guided DDPM chain from pure noise and return x_hat in [0,1]. NFE = steps.

    `t`, `end`, `steps`: times of the first and of the last noisy state and their number, see `noise_levels`.
    `guided`: the first and the last guided step, counted from 0; the list [first, last].
    `pull`: how far a guided step moves every pixel of the variance-preserving state, toward x in [-1,1], by the sign of
    the denoised image minus x; at least 0 (deviation 75: the guide's batch).
    `width`: of the smoothed sign tanh(d / width), above 0. None is the method's sign, through which x has the
    derivative 0, so an attacker needs a width (deviation 76: no gradient in the input).
    `guide_through_network`: pull the sign back through the denoiser in all guided steps but the first, as the released
    code does when autograd is on (deviation 77: two functions in one).
    `clamp`: the last step's clamp to [0,1], see `to_01`. `on_step(i, sigma, z, x0)` is called after every call of the
    denoiser. Raises ValueError for values outside these ranges.
    """
    if pull < 0 or (width is not None and width <= 0):
        raise ValueError(f"need pull >= 0 and width > 0, or width=null for the plain sign, got {pull=}, {width=}")
    sigmas = noise_levels(denoiser.sigma, t, end, steps)
    first, last = _range_of(guided, len(sigmas) - 1)
    given = to_pm1(x)
    z = math.sqrt(1 + sigmas[0] ** 2) * rng.randn_like(given)  # the chain's state x_t is a unit Gaussian
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        is_guided = pull > 0 and first <= i <= last
        if is_guided and guide_through_network and i > first:
            step = functools.partial(_through_network, denoiser, sigma=sigma, width=width)
            x0, direction = guided_step(denoiser, step, z, given)
        else:
            x0 = denoiser(z, sigma)
            direction = _direction(x0 - given, width) if is_guided else None
        if on_step is not None:
            on_step(i, sigma, z, x0)
        z = ancestral_step(z, x0, sigma, sigma_next, rng.randn_like(z) if sigma_next > 0 else None, eta=1.0)
        if direction is not None:
            z = z - pull * math.sqrt(1 + sigma_next**2) * direction
    return to_01(z, clamp)


def _range_of(guided: Sequence[int], steps: int) -> tuple[int, int]:
    whole = isinstance(guided, Sequence) and [type(step) for step in guided] == [int, int]
    if not whole or not 0 <= guided[0] <= guided[1] < steps:
        found = f"got guided={guided}"
        raise ValueError(f"need guided as integers [first, last] with 0 <= first <= last < {steps} steps, {found}")
    return guided[0], guided[1]


def _direction(difference: Tensor, width: float | None) -> Tensor:
    """The gradient of the absolute difference: its sign, or tanh(difference / width)."""
    return difference.sign() if width is None else (difference / width).tanh()


def _through_network(
    denoiser: Denoiser, z: Tensor, given: Tensor, sigma: float, width: float | None
) -> tuple[Tensor, Tensor]:
    """The denoised image x0, and the gradient in z of the sum of |x0 - given|, by a vector-Jacobian product with x0."""
    differentiable = torch.is_grad_enabled() and (z.requires_grad or given.requires_grad)
    with torch.enable_grad(), plain_calls():  # the gradient is differentiated again
        leaf = z if z.requires_grad else z.detach().requires_grad_()
        x0 = denoiser(leaf, sigma)
        cotangent = _direction(x0 - given, width)
        # Always with a graph: without one, autograd takes other kernels, which round otherwise.
        (direction,) = torch.autograd.grad(x0, leaf, cotangent, create_graph=True)
    return (x0, direction) if differentiable else (x0.detach(), direction.detach())
