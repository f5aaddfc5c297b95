"""The low frequencies of a denoised image come from a lightly noised copy of the input: FreqPure's step (Pei et al.
2025), which MANI-Pure has too.
"""

import torch
from torch import Tensor

from dp.diffusion.denoisers import Denoiser
from dp.diffusion.rounds import Change
from dp.diffusion.sampling import LEVELS, renoise, to_01, to_pm1
from dp.rng import Streams


def exchange(denoiser: Denoiser, rng: Streams, radius: float, guide: int) -> Change | None:
    """What replaces x0 in every step; None for a `radius` below 0.

    `radius`: the Fourier coefficients up to this frequency, in cycles over the image, are those of the guide. `guide`:
    the guide is the round's input with fresh noise of this index, denoised at once. It asks the denoiser once more.
    Raises ValueError for a guide without noise or outside the schedule.
    """
    if not 0 <= guide < LEVELS:
        raise ValueError(f"need 0 <= guide < {LEVELS}, got guide={guide}")
    if radius < 0:
        return None
    sigma = denoiser.sigma(guide / LEVELS)
    if sigma == 0:
        raise ValueError(f"need noise at the guide's index, got none at guide={guide}: set purifier.guide=1")

    def change(given: Tensor, x0: Tensor) -> Tensor:
        guide = denoiser(renoise(given, 0.0, sigma, rng.randn_like(given)), sigma)  # denoised at once
        return exchange_low(x0, guide, radius)

    return change


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
