"""Rounds of noising and denoising, as Lee and Kim 2023, LoRID and FreqPure have them."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from dp.diffusion.sampling import LEVELS, Denoise, OnStep, ancestral_step, renoise
from dp.rng import Streams

Inject = Callable[[Tensor, Tensor], Tensor]  # (a round's input, unit noise) -> the noise to add at level 1
Change = Callable[[Tensor, Tensor], Tensor]  # (a round's input, x0) -> the denoised image to go on with


class Round(NamedTuple):
    """The noise levels of one round: `start` is that of the noise which it adds, and `sigmas` are those at which the
    denoiser is called, falling, and 0 for the clean image after them.
    """

    start: float
    sigmas: list[float]

    @property
    def scale(self) -> float:
        """Factor of the noisy state z. In an uneven round the denoiser is first called below the noise's level, and the
        variance-preserving state z / sqrt(1 + sigma^2) is passed on to it as it is.
        """
        return math.sqrt((1 + self.sigmas[0] ** 2) / (1 + self.start**2))


def in_rounds(
    state: Tensor,
    denoiser: Denoise,
    rng: Streams,
    rounds: Sequence[Round],
    *,
    eta: float,
    on_step: OnStep | None,
    inject: Inject | None = None,
    change: Change | None = None,
) -> Tensor:
    """The image (B,C,H,W) in [-1,1] after all rounds, each of which begins with the result of the one before.

    `eta`: 1 for DDPM's ancestral steps, 0 for DDIM's, else ValueError outside [0,1]. `inject`: makes the noise that a
    round adds of unit noise; by default that noise itself. `change`: replaces x0 in every step, and the predicted noise
    stays as it was. `on_step(i, sigma, z, x0)` is called after the denoiser, with i counted over all rounds, and before
    x0 is changed.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"need 0 <= eta <= 1, got eta={eta}")
    i = 0
    for each in rounds:
        given, n = state, rng.randn_like(state)
        state = renoise(given, 0.0, each.start, n if inject is None else inject(given, n)) * each.scale
        for sigma, sigma_next in pairwise(each.sigmas):
            x0 = denoiser(state, sigma)
            if on_step is not None:
                on_step(i, sigma, state, x0)
            i += 1
            if change is not None:
                changed = change(given, x0)
                state, x0 = state + (changed - x0), changed
            n = rng.randn_like(state) if eta > 0 and sigma_next > 0 else None
            state = ancestral_step(state, x0, sigma, sigma_next, n, eta)
    return state


def rounds_of(clock: Callable[[float], float], rounds: Sequence[Sequence[int]]) -> list[Round]:
    """The rounds [K, n]: noise of index K - 1, removed at the indices that `indices` says.

    `clock`: noise level of a time, a denoiser's `sigma`. An index without noise is the clean image, and no step: a
    clock in continuous time has none at index 0.
    Raises ValueError for anything but a list of pairs as in `indices`, and for a round without a step.
    """
    if not isinstance(rounds, Sequence) or not rounds:
        raise ValueError(f"need rounds as a list of pairs [K, n], got {rounds if rounds else 'none'}")
    made = []
    for each in rounds:
        if isinstance(each, str) or not isinstance(each, Sequence) or len(each) != 2:
            raise ValueError(f"need rounds as a list of pairs [K, n], got {each} among them")
        levels = [clock(k / LEVELS) for k in indices(*each)]
        sigmas = [sigma for sigma in levels if sigma > 0]
        if not sigmas:
            raise ValueError(f"need noise in every round, got none at the indices of [{each[0]}, {each[1]}]: raise K")
        made.append(Round(clock((each[0] - 1) / LEVELS), [*sigmas, 0.0]))
    return made


def indices(depth: int, steps: int) -> list[int]:
    """The indices at which a round (K, n) = (depth, steps) calls the denoiser, falling.

    They are every q-th below K with q = K // n, from a multiple of q less one down to q - 1. If n does not divide K,
    their number is not n: (25, 4) has 23, 17, 11, 5, and (50, 20) has 25 of them (deviation 65: uneven rounds).
    Raises ValueError unless both are integers with 1 <= n <= K <= 1000.
    """
    whole = type(depth) is int and type(steps) is int  # True is no number of steps
    if not whole or not 1 <= steps <= depth <= LEVELS:
        raise ValueError(f"need rounds [K, n] of integers with 1 <= n <= K <= {LEVELS}, got [{depth}, {steps}]")
    stride = depth // steps
    return list(range(stride - 1, depth, stride))[::-1]
