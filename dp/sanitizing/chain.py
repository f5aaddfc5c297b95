"""Step 1 of DataElixir (Zhou et al. 2024): the last states of several rounds of noising and denoising."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dp.diffusion.ddpm import large_variance, posterior_mean, small_variance
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import LEVELS, clip_pm1, renoise, to_01, to_pm1
from dp.rng import Streams

VARIANCES = ("small", "large")


@dataclass(frozen=True)
class Rounds:
    """Rounds of noise to time `t` and of denoising to the clean image, each from the result of the one before.

    `t`: the noise time of a round, with the noise of index 1000 t - 1 of the 1000-level schedule (deviation 157: the
    first noise level). `coarse`: equal steps from t to time last / 1000. `last`: steps of one index each, after these;
    their states are kept. `count`: rounds. `variance`: of an ancestral step, `small` or `large`, see
    `dp.diffusion.ddpm`; `large` is for rounds that skip no index, since after a long step it leaves more noise than
    the next level has.
    Raises ValueError for values outside these ranges.
    """

    t: float
    coarse: int
    last: int
    count: int
    variance: str

    def __post_init__(self) -> None:
        if min(self.coarse, self.last, self.count) < 1 or not self.last / LEVELS < self.t <= 1:
            got = f"t={self.t}, coarse={self.coarse}, last={self.last}, count={self.count}"
            raise ValueError(f"need coarse, last, count >= 1 and last / {LEVELS} < t <= 1, got {got}")
        if self.variance not in VARIANCES:
            raise ValueError(f"need variance among {', '.join(VARIANCES)}, got variance={self.variance!r}")

    @property
    def kept(self) -> int:
        """The states of an image that all rounds keep."""
        return self.count * self.last

    def levels(self, clock: Callable[[float], float]) -> list[float]:
        """The falling noise levels of a round; the last one is 0. `clock`: noise level of a time.

        Where the clock has no noise at its start, the round is one level shorter.
        """
        end = self.last / LEVELS
        times = [self.t - i * (self.t - end) / self.coarse for i in range(self.coarse)]
        times += [k / LEVELS for k in range(self.last, 0, -1)]
        levels = [clock(round(time - 1 / LEVELS, 12)) for time in times]
        return [*(sigma for sigma in levels if sigma > 0), 0.0]

    def nfe(self, clock: Callable[[float], float]) -> int:
        """Network evaluations for an image."""
        return self.count * (len(self.levels(clock)) - 1)

    @torch.no_grad()
    def states(
        self, x: Tensor, denoiser: Denoiser, rng: Streams, on_call: Callable[[], object] = tuple
    ) -> list[Tensor]:
        """The kept states of images x (B,C,H,W) in [0,1], the first round first: `kept` images (B,C,H,W), uint8.

        The state at noise level sigma is z / sqrt(1 + sigma^2), the state of the papers, clamped and rounded to 8 bits.
        Noise comes from `rng`, a draw for each round. `on_call` is called after every call of the denoiser.
        """
        levels, kept, z = self.levels(denoiser.sigma), [], to_pm1(x)
        for k in range(self.count):
            streams = rng.draw(k)
            z = renoise(z, 0.0, levels[0], streams.randn_like(z))
            states = []
            for sigma, sigma_next in pairwise(levels):
                z = self.step(z, denoiser(z, sigma), sigma, sigma_next, streams)
                states.append(to_bytes(to_01(z / (1 + sigma_next**2) ** 0.5)))
                on_call()
            kept += states[-self.last :]
            z = z.clamp(-1.0, 1.0)
        return kept

    def step(self, z: Tensor, x0: Tensor, sigma: float, sigma_next: float, rng: Streams) -> Tensor:
        """An ancestral step with clipped x0 (Ho et al. 2020, Eq. 7). The step to the clean image has no noise."""
        mean = posterior_mean(z, clip_pm1(x0), sigma, sigma_next)
        if sigma_next == 0:
            return mean
        variance = (large_variance if self.variance == "large" else small_variance)(sigma, sigma_next)
        return mean + variance**0.5 * rng.randn_like(z)


def to_bytes(x: Tensor) -> Tensor:
    """Images in [0,1] as 8-bit images, of the same shape."""
    # Differs: rounded, not truncated (deviation 158: the 8 bits of a state).
    return (255 * x).round().clamp(0, 255).to(torch.uint8)


def to_floats(x: Tensor) -> Tensor:
    """8-bit images as images in [0,1], of the same shape."""
    return x.float() / 255
