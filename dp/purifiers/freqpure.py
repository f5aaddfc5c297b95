"""FreqPure (Pei et al. 2025): a diffusion chain whose low frequencies come from a lightly noised copy of the input."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.rounds import rounds_of
from dp.diffusion.sampling import LEVELS, OnStep, ancestral_step, renoise, to_01, to_pm1
from dp.rng import Streams

Inject = Callable[[Tensor, Tensor], Tensor]  # (round's input, unit noise) -> the noise to add at level 1; all (B,C,H,W)


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    rounds: Sequence[Sequence[int]],
    radius: float,
    guide: int,
    eta: float,
    clamp: str = "plain",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by FreqPure and return x_hat in [0,1]. NFE = 2 for each step.

    `rounds`: pairs [K, n], 1 <= n <= K <= 1000, see `dp.diffusion.rounds`. A round adds the noise of index K - 1 of the
    1000-level schedule and denoises in about n steps; one step less where the denoiser's clock has no noise at the last
    index. The next round begins with the result.
    `radius`: in every step, the Fourier coefficients of the denoised image up to this frequency, in cycles over the
    image, are replaced by those of the guide. Below 0 there is no guide, and NFE = 1 for each step.
    `guide`: the guide is the round's input with fresh noise of this index, denoised at once.
    `eta`: 1 for DDPM's ancestral steps, 0 for DDIM's. `clamp`: the last step's clamp to [0,1], see `to_01`.
    `on_step(i, sigma, z, x0)` is called after the first call of the denoiser in every step, before x0 is changed.
    Raises ValueError for values outside these ranges.
    """
    return chain(x, denoiser, rng, _uniform, on_step, rounds=rounds, radius=radius, guide=guide, eta=eta, clamp=clamp)


def chain(
    x: Tensor,
    denoiser: Denoiser,
    rng: Streams,
    inject: Inject,
    on_step: OnStep | None,
    *,
    rounds: Sequence[Sequence[int]],
    radius: float,
    guide: int,
    eta: float,
    clamp: str,
) -> Tensor:
    """`purify` with the noise that `inject` makes of unit noise at the start of each round."""
    _check(denoiser, radius, guide, eta)
    made, state, i = rounds_of(denoiser.sigma, rounds), to_pm1(x), 0
    for each in made:
        given = state  # the round's input, which the guide is made of
        state = renoise(given, 0.0, each.start, inject(given, rng.randn_like(given))) * each.scale
        for sigma, sigma_next in pairwise(each.sigmas):
            x0 = denoiser(state, sigma)
            if on_step is not None:
                on_step(i, sigma, state, x0)
            i += 1
            if radius >= 0:
                changed = exchange_low(x0, _guide(given, denoiser, rng, guide), radius)
                state, x0 = state + (changed - x0), changed  # the predicted noise stays as it was
            n = rng.randn_like(state) if eta > 0 and sigma_next > 0 else None
            state = ancestral_step(state, x0, sigma, sigma_next, n, eta)
    return to_01(state, clamp)


def _uniform(given: Tensor, n: Tensor) -> Tensor:
    """The unit noise n (B,C,H,W) as it is, whatever the round's input."""
    return n


def exchange_low(x0: Tensor, guide: Tensor, radius: float) -> Tensor:
    """x0 with the guide's amplitudes and phases at all frequencies up to `radius`; all (B,C,H,W) in [-1,1].

    Both images are clamped before. The result's absolute value in [0,1] is taken, and clamped to 1, as in the released
    code.
    """
    # Differs (deviation 82: phase clip of FreqPure): the phases are not clipped, which has no effect.
    own, other = to_01(x0), to_01(guide)
    low = _low_pass(other - own, radius)  # the transform is linear, so this replaces the coefficients
    return to_pm1(to_01(to_pm1((own + low).abs())))


def _low_pass(image: Tensor, radius: float) -> Tensor:
    """The frequencies up to `radius`, in cycles over the image, of images (B,C,H,W)."""
    rows, columns = (torch.fft.fftfreq(side, 1 / side, device=image.device) for side in image.shape[2:])
    disc = (rows[:, None] ** 2 + columns**2) <= radius**2  # (H,W), symmetric, so that the result is real
    return torch.fft.ifft2(torch.fft.fft2(image) * disc).real


def _guide(given: Tensor, denoiser: Denoiser, rng: Streams, index: int) -> Tensor:
    """One-step denoising of the round's input (B,C,H,W) with fresh noise."""
    sigma = denoiser.sigma(index / LEVELS)
    return denoiser(renoise(given, 0.0, sigma, rng.randn_like(given)), sigma)


def _check(denoiser: Denoiser, radius: float, guide: int, eta: float) -> None:
    if not 0 <= guide < LEVELS:
        raise ValueError(f"need 0 <= guide < {LEVELS}, got guide={guide}")
    if radius >= 0 and denoiser.sigma(guide / LEVELS) == 0:
        raise ValueError(f"need noise at the guide's index, got none at guide={guide}: set purifier.guide=1")
    if not 0 <= eta <= 1:
        raise ValueError(f"need 0 <= eta <= 1, got eta={eta}")
