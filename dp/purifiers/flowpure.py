"""FlowPure with Gaussian noise (Collaert et al. 2025): noise, then a flow back to the clean image."""

from itertools import pairwise

from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Consistency, Denoiser
from dp.diffusion.sampling import OnStep, ancestral_step, renoise, to_01, to_pm1
from dp.rng import Streams


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    pixel_sigma: float,
    t_start: float,
    steps: int,
    clamp: str = "plain",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by a flow and return x_hat in [0,1]. NFE = steps.

    `pixel_sigma`: of the noise at the flow's start, for images in [0,1]. `t_start`: where on the flow the image enters
    it, with noise of (1 - t_start) pixel_sigma. `steps` steps of Euler's method of equal length lead from there to 1.
    On a `Flow` the velocity is the network's. On any other posterior mean it is (x0 - z) / (1 - t), the same in
    expectation.
    `clamp`: the last clamp to [0,1], see `to_01`.
    `on_step(i, sigma, z, x0)` is called after every call of the denoiser.
    Raises ValueError unless pixel_sigma > 0, 0 <= t_start < 1 and steps >= 1, and for a consistency model.
    """
    if pixel_sigma <= 0 or not 0 <= t_start < 1 or steps < 1:
        given = f"pixel_sigma={pixel_sigma}, t_start={t_start}, steps={steps}"
        raise ValueError(f"need pixel_sigma > 0, 0 <= t_start < 1 and steps >= 1, got {given}")
    if isinstance(denoiser, Consistency) and denoiser.boundary:
        raise ValueError("need a denoiser that is a posterior mean, got a consistency model: set denoiser=NAME")
    start = 2 * pixel_sigma * (1 - t_start)  # images in [-1,1] are twice as wide
    z = renoise(to_pm1(x), 0.0, start, rng.randn_like(x))
    for i, (sigma, sigma_next) in enumerate(pairwise([start * (1 - k / steps) for k in range(steps + 1)])):
        x0 = denoiser(z, sigma)
        if on_step is not None:
            on_step(i, sigma, z, x0)
        z = ancestral_step(z, x0, sigma, sigma_next, None, eta=0.0)  # dz = v dt, with sigma = (1 - t) 2 pixel_sigma
    return to_01(z, clamp)  # Differs (deviation 62: what the classifier is given)
