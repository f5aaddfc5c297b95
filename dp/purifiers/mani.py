"""MANI-Pure (Huang et al. 2025, arXiv 2509.25082): FreqPure's chain with noise that depends on the image's spectrum.

Our reading of the paper's Eqs. 8 to 11; no code is public, and the paper leaves open which bands, phases and scale they
have (deviation 89: our reading of MANI-Pure).
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.rounds import in_rounds, rounds_of
from dp.diffusion.sampling import OnStep, to_01, to_pm1
from dp.purifiers.frequency_exchange import exchange
from dp.rng import Streams

FORMS = ("spatial", "spectral")
LEAST_POWER = 1e-30  # is added to the mean square of a noise map; an image of zeros then gets no noise


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    form: str,
    bands: int,
    gamma: float,
    floor: float,
    rounds: Sequence[Sequence[int]],
    radius: float,
    guide: int,
    eta: float,
    clamp: str = "plain",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by magnitude-adaptive noise and return x_hat in [0,1]. NFE = 2 for each step.

    `form`: how the weights of the bands act, see `adapted`. `bands`: their number, at least 1. `gamma`: how strongly
    bands of low magnitude are preferred, at least 0; at 0 all bands have the same weight. `floor`: is added to a band's
    magnitude to the power gamma, above 0.
    `rounds`, `radius`, `guide`, `eta`, `clamp`, `on_step`: of the chain, see `dp.purifiers.freqpure.purify`. Its state
    has the noise level sigma of the schedule on average over each image. With `radius` below 0 it is DiffPure's chain,
    and NFE = 1 for each step.
    Raises ValueError for values outside these ranges.
    """
    if form not in FORMS:
        raise ValueError(f"need form among {', '.join(FORMS)}, got form={form!r}")
    if not (bands >= 1 and gamma >= 0 and floor > 0):
        raise ValueError(f"need bands >= 1, gamma >= 0 and floor > 0, got {bands=}, {gamma=}, {floor=}")
    inject = functools.partial(adapted, form=form, bands=bands, gamma=gamma, floor=floor)
    change, made = exchange(denoiser, rng, radius, guide), rounds_of(denoiser.sigma, rounds)
    state = in_rounds(to_pm1(x), denoiser, rng, made, eta=eta, on_step=on_step, inject=inject, change=change)
    return to_01(state, clamp)


def adapted(given: Tensor, n: Tensor, *, form: str, bands: int, gamma: float, floor: float) -> Tensor:
    """The noise (B,C,H,W) of images `given` in [-1,1], made of unit Gaussian noise n of their shape.

    `spatial`: n times a map W, the inverse transform of the weighted spectrum of the image. W keeps its sign, which
    does not change the law of the noise. `spectral`: the spectrum of n is weighted. In both, the mean square over the
    image is 1, in expectation over n.
    """
    spectrum = torch.fft.fft2((given.double() + 1) / 2)  # in float64, so that no bit depends on an image's place
    weights = band_weights(spectrum.abs(), bands, gamma, floor)
    if form == "spatial":
        scale = torch.fft.ifft2(spectrum * weights).real
        return n * (scale / _root_mean_square(scale)).to(n.dtype)
    return torch.fft.ifft2(torch.fft.fft2(n.double()) * (weights / _root_mean_square(weights))).real.to(n.dtype)


def band_weights(magnitude: Tensor, bands: int, gamma: float, floor: float) -> Tensor:
    """Eqs. 8 and 9: 1 / (M^gamma + floor) at each frequency, over its largest value in the image; both (B,C,H,W).

    M is the mean magnitude of a frequency's band, for each channel. The bands are rings of equal width in frequency, up
    to the highest one in the corner.
    """
    rows, columns = (torch.fft.fftfreq(side, 1 / side, device=magnitude.device) for side in magnitude.shape[2:])
    length = (rows[:, None] ** 2 + columns**2).sqrt()
    ring = (bands * length / length.max()).long().clamp(max=bands - 1)  # (H,W)
    member = torch.nn.functional.one_hot(ring, bands).to(magnitude.dtype)  # (H,W,bands)
    sums = torch.einsum("bchw,hwn->bcn", magnitude, member)
    means = sums / member.sum(dim=(0, 1)).clamp(min=1)  # a ring without a frequency is never asked for
    weights = (1 / (means**gamma + floor))[:, :, ring]
    return weights / weights.amax(dim=(1, 2, 3), keepdim=True)


def _root_mean_square(values: Tensor) -> Tensor:
    """Of each image, (B,1,1,1)."""
    return (values.square().mean(dim=(1, 2, 3), keepdim=True) + LEAST_POWER).sqrt()
