"""FreqPure (Pei et al. 2025): a diffusion chain whose low frequencies come from a lightly noised copy of the input."""

from collections.abc import Sequence

from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.rounds import in_rounds, rounds_of
from dp.diffusion.sampling import OnStep, to_01, to_pm1
from dp.purifiers.frequency_exchange import exchange
from dp.rng import Streams


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
    change = exchange(denoiser, rng, radius, guide)
    made = rounds_of(denoiser.sigma, rounds)
    return to_01(in_rounds(to_pm1(x), denoiser, rng, made, eta=eta, on_step=on_step, change=change), clamp)
