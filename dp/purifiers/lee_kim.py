"""Gradual noise scheduling (Lee and Kim 2023): short rounds of noising and denoising whose depth grows."""

from collections.abc import Sequence

from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.rounds import in_rounds, rounds_of
from dp.diffusion.sampling import OnStep, to_01, to_pm1
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
    removes it in about n steps, see `dp.diffusion.rounds`. NFE = number of all steps; a round has one step less where
    the denoiser's clock has no noise at its last index.
    `eta`: 1 for DDPM's ancestral steps, 0 for DDIM's.
    `clamp`: the last clamp to [0,1], see `to_01`. Nothing is clamped between rounds.
    `on_step(i, sigma, z, x0)` is called after every call of the denoiser, with i counted over all rounds.
    Raises ValueError for values outside these ranges.
    """
    z = in_rounds(to_pm1(x), denoiser, rng, rounds_of(denoiser.sigma, rounds), eta=eta, on_step=on_step)
    return to_01(z, clamp)  # Differs (deviation 62: what the classifier is given)
