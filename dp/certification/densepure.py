"""DensePure (Xiao et al. 2023): several reverse chains from the same noised image, and the vote of their classes."""

import functools
from itertools import pairwise

import torch
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import ancestral_step, time_of, to_01, to_pm1
from dp.evaluation.dry import MOST_NFE
from dp.rng import Streams


def classes(
    x: Tensor,
    sigma: float,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    steps: int,
    chains: int,
) -> Tensor:
    """The class (B,) of each noised image x (B,C,H,W): the vote of its chains. NFE = steps x chains.

    x is an image in [0,1] plus Gaussian noise of std `sigma`, so it may leave [0,1]. A chain makes `steps` ancestral
    steps from the level 2 sigma to the clean image. The chains of an image have independent noise.
    Raises ValueError for steps or chains below 1 or above `MOST_NFE` together, and for a level or a number of steps
    beyond the denoiser's clock.
    """
    if steps < 1 or chains < 1:
        raise ValueError(f"need steps >= 1 and chains >= 1, got steps={steps}, chains={chains}")
    if steps * chains > MOST_NFE:
        raise ValueError(f"need steps x chains <= {MOST_NFE}, got steps={steps}, chains={chains}")
    levels, z = levels_of(denoiser, 2 * sigma, steps), to_pm1(x)
    answers = [classifier(to_01(chain(z, levels, denoiser, rng.draw(k)))).argmax(dim=1) for k in range(chains)]
    return vote(torch.stack(answers))


@functools.lru_cache(maxsize=8)  # the clock is asked dozens of times
def levels_of(denoiser: Denoiser, sigma: float, steps: int) -> tuple[float, ...]:
    """Noise levels of a chain: sigma, then those of times in equal steps from its time to 0, at last 0.0.

    Raises ValueError where they do not fall.
    """
    # Differs: times are equally spaced on the denoiser's clock (deviation 101: levels of a chain).
    t = time_of(denoiser.sigma, sigma)
    levels = (sigma, *(denoiser.sigma(t * (1 - i / steps)) for i in range(1, steps)), 0.0)
    if not all(a > b for a, b in pairwise(levels)):
        raise ValueError(f"need steps between levels of the denoiser below sigma {sigma:.4g}, got steps={steps}: fewer")
    return levels


def chain(z: Tensor, levels: tuple[float, ...], denoiser: Denoiser, rng: Streams) -> Tensor:
    """One reverse chain from z (B,C,H,W) at the first of the levels to an image in [-1,1]."""
    for sigma, sigma_next in pairwise(levels):
        x0 = denoiser(z, sigma).clamp(-1, 1)  # the original clips the prediction at every step
        n = rng.randn_like(z) if sigma_next > 0 else None
        # Differs: the variance is the posterior's, not a learned one (deviation 102: variance of a chain).
        z = ancestral_step(z, x0, sigma, sigma_next, n, eta=1.0)
    return z


def vote(answers: Tensor) -> Tensor:
    """The most frequent class (B,) among the answers (chains,B). Of tied classes the one that came first wins."""
    counts = (answers.unsqueeze(0) == answers.unsqueeze(1)).sum(dim=0)  # (chains,B): how often each answer occurs
    return answers.gather(0, counts.argmax(dim=0, keepdim=True)).squeeze(0)  # argmax: the first of equal counts
