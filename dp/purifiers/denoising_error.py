"""Descent on the denoising error of an image, which likelihood maximization and score-based optimization share."""

import functools

from torch import Tensor

from dp.adam import adam_step
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.guided import guided_step, inner_gradient
from dp.diffusion.sampling import OnStep
from dp.rng import Streams

DERIVATIVES = ("exact", "constant_net", "identity")


def descend(
    z: Tensor,
    denoiser: Denoiser,
    rng: Streams,
    *,
    low: float,
    high: float,
    steps: int,
    lr: float,
    share: float,
    constant_net: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """`steps` steps of Adam from z (B,C,H,W) in [-1,1] on the mean over pixels of (D(z + sigma n, sigma) - z)^2.

    Each step draws, for each image, a level sigma between `low` and `high` and unit Gaussian noise n.
    NFE = steps; each call of the denoiser is also differentiated inside.
    `share`: a factor of the gradient, which Adam's small constant 1e-8 feels.
    `constant_net`: an attacker's approximation without second derivatives. The values are the same; the derivative of
    this descent takes each gradient for 2 (z - D) / pixels, in which the network is not differentiated.
    `on_step(i, sigma, z, x0)` is called after every call of the denoiser, with the noisy state and the middle of the
    range of sigma.
    """
    m, v = z.new_zeros(z.shape), z.new_zeros(z.shape)
    for i in range(steps):
        sigma = low + (high - low) * rng.uniform_like(z[:, :1, :1, :1])  # (B,1,1,1)
        given = {"denoiser": denoiser, "sigma": sigma, "count": i + 1, "lr": lr, "share": share}
        step = functools.partial(_step, **given, constant_net=constant_net)
        z, m, v, noisy, x0 = guided_step(denoiser, step, z, m, v, rng.randn_like(z))
        if on_step is not None:
            on_step(i, (low + high) / 2, noisy, x0)
    return z


def _step(
    z: Tensor,
    m: Tensor,
    v: Tensor,
    n: Tensor,
    *,
    denoiser: Denoiser,
    sigma: Tensor,
    count: int,
    lr: float,
    share: float,
    constant_net: bool,
) -> tuple[Tensor, ...]:
    """The next z, m and v, and the noisy state with its denoised images, all (B,C,H,W)."""

    def error(z: Tensor) -> tuple[Tensor, Tensor]:
        x0 = denoiser(z + sigma * n, sigma)
        return (x0 - z).square().mean(dim=(1, 2, 3)), x0

    (g,), (x0,) = inner_gradient(error, z)
    if constant_net:  # the value of g, and the derivative of what g is without the network's own derivative
        without = 2 / z[0].numel() * (z - x0)
        g = g.detach() + (without - without.detach())
    return *adam_step(z, share * g, m, v, count, lr), z + sigma * n, x0


def check(low: float, high: float, steps: int, lr: float, derivative: str, derivatives: tuple[str, ...]) -> None:
    """Raise ValueError unless 0 < low <= high, steps >= 0, lr > 0, and the derivative is one of `derivatives`."""
    if not 0 < low <= high:
        raise ValueError(f"need levels 0 < low <= high, got low={low}, high={high}")
    if steps < 0 or lr <= 0:
        raise ValueError(f"need steps >= 0 and lr > 0, got steps={steps}, lr={lr}")
    if derivative not in derivatives:
        raise ValueError(f"need derivative among {', '.join(derivatives)}, got derivative={derivative!r}")
