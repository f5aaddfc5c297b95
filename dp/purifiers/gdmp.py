"""GDMP (Wang et al. 2022, arXiv 2205.14969): DDPM purification whose every step is pulled toward the input image."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.ddpm import learned_variance, posterior_mean, variance_bounds
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.guided import inner_gradient
from dp.diffusion.sampling import LEVELS, OnStep, clip_pm1, noise_levels, renoise, to_01, to_pm1
from dp.purifiers.ssim import ssim
from dp.rng import Streams

GUIDES = ("mse", "ssim")


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
    rounds: int,
    noise_above: int,
    guide: str,
    noisy_guide: bool,
    strength: float,
    share: float,
    variance: str,
    constant_guide: bool = False,
    clamp: str = "plain",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by guided DDPM steps and return x_hat in [0,1]. NFE = rounds * steps, one less
    in each round where the denoiser's clock has no noise at `end`.

    `t`, `end`, `steps`: times of the first and of the last noisy state and their number, see `noise_levels`.
    `rounds`: how often noise is added and removed; the state is not clamped between rounds.
    `noise_above`: a round's noise is that of this many indices above t, whose variance-preserving state is then taken
    for one at t (deviation 70: noise of one index more).
    `guide`: `mse` or `ssim`, the similarity to x that the steps ascend, per image (deviation 71: the guide per image).
    `noisy_guide`: compare the state with x noised to the same level, not with x itself.
    `strength`: factor of the guide's gradient, 0 for no guide, see `Guide.pull`. `share`: a second factor in (0,1], for
    the mean over a batch of 1 / share images.
    `variance`: `small`, `large` or `learned`, see `dp.diffusion.ddpm.variance_bounds`.
    `constant_guide`: leave the guide's gradient out of the derivative, as the released code does (deviation 74).
    `clamp`: the last step's clamp to [0,1], see `to_01`. `on_step(i, sigma, z, x0)` is called after every call of the
    denoiser, with x0 clipped to [-1,1]. Raises ValueError for values outside these ranges.
    """
    if rounds < 1 or noise_above < 0:
        raise ValueError(f"need rounds >= 1 and noise_above >= 0, got {rounds=}, {noise_above=}")
    chain = Chain(denoiser, noise_levels(denoiser.sigma, t, end, steps), variance, on_step)
    guiding = Guide(guide, noisy_guide, strength, share, constant_guide)
    start = denoiser.sigma(t + noise_above / LEVELS)
    scale = math.sqrt((1 + chain.sigmas[0] ** 2) / (1 + start**2))  # 1, unless the noise is of a higher index
    given = state = to_pm1(x)
    for done in range(rounds):
        z = scale * renoise(state, 0.0, start, rng.randn_like(x))
        state = chain.denoised(z, given, guiding, rng, done * (len(chain.sigmas) - 1))
    return to_01(state, clamp)


class Chain:
    """DDPM's steps down the falling noise levels `sigmas`, of which the last is 0. `variance` as in `purify`."""

    def __init__(self, denoiser: Denoiser, sigmas: Sequence[float], variance: str, on_step: OnStep | None):
        self.denoiser, self.sigmas, self.variance, self.on_step = denoiser, sigmas, variance, on_step
        self.bounds = variance_bounds(sigmas, variance)

    def denoised(self, z: Tensor, given: Tensor, guide: "Guide", rng: Streams, first: int) -> Tensor:
        """The clean image of a state z (B,C,H,W) at the first level, guided by `given`. `first`: number of its step."""
        for i, (sigma, sigma_next) in enumerate(pairwise(self.sigmas)):
            x0, variance = self.predicted(z, i)
            if self.on_step is not None:
                self.on_step(first + i, sigma, z, x0)
            mean = posterior_mean(z, x0, sigma, sigma_next)
            if guide.factor > 0 and self.bounds[i][1] > 0:
                mean = mean + variance * guide.pull(z, given, sigma, sigma_next, rng)
            z = mean + variance**0.5 * rng.randn_like(z) if sigma_next > 0 else mean
        return z

    def predicted(self, z: Tensor, i: int) -> tuple[Tensor, float | Tensor]:
        """The denoised image, clipped to [-1,1], and the variance of step i."""
        small, large = self.bounds[i]
        if self.variance == "learned":
            x0, u = self.denoiser.with_variance(z, self.sigmas[i])
            return clip_pm1(x0), learned_variance(u, large, small)
        return clip_pm1(self.denoiser(z, self.sigmas[i])), small


class Guide:
    """The pull of GDMP's steps toward an image. Arguments as in `purify`, and ValueError for wrong ones."""

    def __init__(self, name: str, noisy: bool, strength: float, share: float, constant: bool):
        if name not in GUIDES:
            raise ValueError(f"need guide among {', '.join(GUIDES)}, got guide={name!r}")
        if not (strength >= 0 and 0 < share <= 1):
            raise ValueError(f"need strength >= 0 and 0 < share <= 1, got {strength=}, {share=}")
        self.name, self.noisy, self.factor, self.constant = name, noisy, strength * share, constant

    def pull(self, z: Tensor, given: Tensor, sigma: float, sigma_next: float, rng: Streams) -> Tensor:
        """What a step from sigma to sigma_next adds to its mean, over its variance (B,C,H,W). `given`: the input image.

        The method adds S strength sqrt(1 - abar) / sqrt(abar) grad g(x_t) to the mean of x at the next level, where S
        is the variance of x. The variance of z is S (1 + sigma_next^2), and z is x sqrt(1 + sigma_next^2).
        """
        scale = math.sqrt(1 + sigma**2)
        target = renoise(given, 0.0, sigma, rng.randn_like(given)) / scale if self.noisy else given
        state = z / scale
        # Differs (deviation 71: the guide per image): the released code takes means over the whole batch.
        to_target = 2 / state[0].numel() * (target - state)  # the gradient of -mean (x_t - target)^2
        gradient = to_target if self.name == "mse" else inner_gradient(lambda z: [ssim(z, target)], state)[0][0]
        # Differs (deviation 74: the guide's gradient): in the released code it is a constant.
        gradient = gradient.detach() if self.constant else gradient
        return self.factor * sigma / math.sqrt(1 + sigma_next**2) * gradient
