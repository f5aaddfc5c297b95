"""Gradual noise scheduling (Lee and Kim 2023): short rounds of noising and denoising whose depth grows."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import LEVELS, OnStep, ancestral_step, renoise, to_01, to_pm1
from dp.rng import Streams


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    rounds: Sequence[Sequence[int]],
    eta: float,
    clamp: str = "plain",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] round by round and return x_hat in [0,1].

    `rounds`: pairs (K, n), 1 <= n <= K <= 1000. A round adds the noise of index K - 1 of the 1000-level schedule, and
    removes it in about n steps, see `indices`. NFE = number of all steps.
    `eta`: 1 for DDPM's ancestral steps, 0 for DDIM's.
    `clamp`: the last clamp to [0,1], see `to_01`. Nothing is clamped between rounds.
    `on_step(i, sigma, z, x0)` is called after every call of the denoiser, with i counted over all rounds.
    Raises ValueError for values outside these ranges.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"need 0 <= eta <= 1, got eta={eta}")
    if not rounds:
        raise ValueError("need rounds as a list of pairs [K, n], got none")
    chains, z, i = [indices(*each) for each in rounds], to_pm1(x), 0
    for (depth, _), chain in zip(rounds, chains, strict=True):
        start = denoiser.sigma((depth - 1) / LEVELS)
        sigmas = [denoiser.sigma(k / LEVELS) for k in chain] + [0.0]
        z = renoise(z, 0.0, start, rng.randn_like(z))
        # Where n does not divide K, the first step's index lies below K - 1. The state x_t = z / sqrt(1 + sigma^2) is
        # passed on as it is, so z is scaled.
        z = z * math.sqrt((1 + sigmas[0] ** 2) / (1 + start**2))
        for sigma, sigma_next in pairwise(sigmas):
            x0 = denoiser(z, sigma)
            if on_step is not None:
                on_step(i, sigma, z, x0)
            n = rng.randn_like(z) if eta > 0 and sigma_next > 0 else None
            z, i = ancestral_step(z, x0, sigma, sigma_next, n, eta), i + 1
    return to_01(z, clamp)  # Differs (deviation 62: what the classifier is given)


def indices(depth: int, steps: int) -> list[int]:
    """The indices at which a round (K, n) = (depth, steps) calls the denoiser, falling.

    They are every q-th below K with q = K // n, from a multiple of q less one down to q - 1. If n does not divide K,
    their number is not n: (25, 4) has 23, 17, 11, 5, and (50, 20) has 25 of them (deviation 65: uneven rounds).
    Raises ValueError unless both are integers with 1 <= n <= K <= 1000.
    """
    whole = isinstance(depth, int) and isinstance(steps, int)
    if not whole or not 1 <= steps <= depth <= LEVELS:
        raise ValueError(f"need rounds [K, n] of integers with 1 <= n <= K <= {LEVELS}, got [{depth}, {steps}]")
    stride = depth // steps
    return list(range(stride - 1, depth, stride))[::-1]
