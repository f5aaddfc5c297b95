"""Score-based optimization (Zhang et al. 2023): Adam on the image, or on a noisy state of it, with an objective of the
diffusion model.
"""

import functools

import torch
from torch import Tensor

from dp.adam import adam_step
from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.guided import guided_step, inner_gradient
from dp.diffusion.sampling import OnStep, renoise, to_01, to_pm1, with_identity
from dp.purifiers.denoising_error import check, descend
from dp.rng import Streams

FORMS = ("x0", "xt")
DERIVATIVES = ("exact", "identity")


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    form: str,
    level: float,
    spread: float,
    steps: int,
    lr: float,
    share: float = 1.0,
    clamp: str = "plain",
    derivative: str = "exact",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by score-based optimization and return x_hat in [0,1].

    `form`: `x0` descends from the image on its denoising error, mean (D(x + sigma n, sigma) - x)^2, with a fresh level
    sigma and fresh noise n in every step; NFE = steps. `xt` adds noise of the level once and descends from this state z
    on mean ((z - D(z, level)) / level - n)^2, with n the noise that was added; the result is D(z, level); NFE =
    steps + 1. With steps = 0 it is one denoising. Each step also takes a pass backward through the denoiser.
    `level`: the noise level, sigma of images in [-1,1]. `spread`: the levels of `x0` lie within `level` +- `spread`,
    0 <= spread < level. `steps`, `lr`: of Adam, steps >= 0.
    `share`: a factor of each image's gradient. The released code takes the mean over a batch of B images, which is
    share = 1/B; only Adam's constant 1e-8 feels it.
    `clamp`: the last step's clamp to [0,1], see `to_01`. `derivative`: what an attacker may use in place of the
    derivative: `exact` or `identity` (BPDA). The values are the same.
    `on_step(i, sigma, z, x0)` is called after every call of the denoiser, with `level` as sigma.
    Raises ValueError for values outside these ranges.
    """
    if form not in FORMS:
        raise ValueError(f"need form among {', '.join(FORMS)}, got form={form!r}")
    if spread < 0:
        raise ValueError(f"need 0 <= spread < level, got spread={spread}, level={level}")
    check(level - spread, level + spread, steps, lr, derivative, DERIVATIVES)
    z, given = to_pm1(x), {"steps": steps, "lr": lr, "share": share, "on_step": on_step}
    with torch.set_grad_enabled(torch.is_grad_enabled() and derivative != "identity"):
        if form == "x0":  # Differs (deviation 81: noise level of score-based optimization): a level for each image
            z = descend(z, denoiser, rng, low=level - spread, high=level + spread, **given)
        else:
            z = _descend_noisy(z, denoiser, rng, level, **given)
    x_hat = to_01(z, clamp)
    return with_identity(x_hat, x) if derivative == "identity" else x_hat


def _descend_noisy(
    z: Tensor,
    denoiser: Denoiser,
    rng: Streams,
    level: float,
    *,
    steps: int,
    lr: float,
    share: float,
    on_step: OnStep | None,
) -> Tensor:
    """The form xt: the denoised image (B,C,H,W) of the state to which Adam leads from z plus noise of the level."""
    n, m, v = rng.randn_like(z), z.new_zeros(z.shape), z.new_zeros(z.shape)
    z = renoise(z, 0.0, level, n)
    for i in range(steps):
        step = functools.partial(_step, denoiser=denoiser, level=level, count=i + 1, lr=lr, share=share)
        before = z
        z, m, v, x0 = guided_step(denoiser, step, z, m, v, n)
        if on_step is not None:
            on_step(i, level, before, x0)
    x0 = denoiser(z, level)
    if on_step is not None:
        on_step(steps, level, z, x0)
    return x0


def _step(
    z: Tensor, m: Tensor, v: Tensor, n: Tensor, *, denoiser: Denoiser, level: float, count: int, lr: float, share: float
) -> tuple[Tensor, ...]:
    """The next z, m and v, and the denoised images of z, all (B,C,H,W)."""

    def error(z: Tensor) -> tuple[Tensor, Tensor]:
        x0 = denoiser(z, level)
        return ((z - x0) / level - n).square().mean(dim=(1, 2, 3)), x0

    (g,), (x0,) = inner_gradient(error, z)
    return *adam_step(z, share * g, m, v, count, lr), x0
