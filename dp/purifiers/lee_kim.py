"""Gradual noise scheduling (Lee and Kim 2023): short rounds of noising and denoising whose depth grows."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.rounds import rounds_of
from dp.diffusion.sampling import OnStep, ancestral_step, renoise, to_01, to_pm1
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
    if not 0 <= eta <= 1:
        raise ValueError(f"need 0 <= eta <= 1, got eta={eta}")
    made, z, i = rounds_of(denoiser.sigma, rounds), to_pm1(x), 0
    for each in made:
        z = renoise(z, 0.0, each.start, rng.randn_like(z)) * each.scale
        for sigma, sigma_next in pairwise(each.sigmas):
            x0 = denoiser(z, sigma)
            if on_step is not None:
                on_step(i, sigma, z, x0)
            n = rng.randn_like(z) if eta > 0 and sigma_next > 0 else None
            z, i = ancestral_step(z, x0, sigma, sigma_next, n, eta), i + 1
    return to_01(z, clamp)  # Differs (deviation 62: what the classifier is given)
