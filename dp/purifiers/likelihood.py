"""Likelihood maximization (Chen et al. 2024, "Robust Classification via a Single Diffusion Model"): Adam on the image's
denoising error, a bound of its likelihood.
"""

import torch
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import OnStep, to_01, to_pm1, with_identity
from dp.purifiers.denoising_error import DERIVATIVES, check, descend
from dp.rng import Streams


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    low: float,
    high: float,
    steps: int,
    lr: float,
    share: float = 1.0,
    clamp: str = "plain",
    derivative: str = "exact",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by likelihood maximization and return x_hat in [0,1].

    NFE = steps, and as many passes backward through the denoiser. The descent starts at x itself, without noise.
    `low`, `high`: range of the noise levels sigma of images in [-1,1], 0 < low <= high.
    `steps`, `lr`: of Adam, steps >= 0. Its first step is nearly a sign, whose derivative is small almost everywhere.
    `share`: a factor of each image's gradient. The released code takes the mean over a batch of B images, which is
    share = 1/B; only Adam's constant 1e-8 feels it.
    `clamp`: the last step's clamp to [0,1], see `to_01`.
    `derivative`: what an attacker may use in place of the derivative: `exact`, `identity` (BPDA), or `constant_net`,
    which takes no second derivatives of the network, see `descend`. The values are the same.
    `on_step(i, sigma, z, x0)` is called after every call of the denoiser, with the middle of the range of sigma.
    Raises ValueError for values outside these ranges.
    """
    check(low, high, steps, lr, derivative, DERIVATIVES)
    z = to_pm1(x)
    with torch.set_grad_enabled(torch.is_grad_enabled() and derivative != "identity"):
        # Differs (deviation 80: noise of likelihood maximization): fresh noise, in place of one fixed seed.
        given = {"low": low, "high": high, "steps": steps, "lr": lr, "share": share}
        z = descend(z, denoiser, rng, **given, constant_net=derivative == "constant_net", on_step=on_step)
    x_hat = to_01(z, clamp)
    return with_identity(x_hat, x) if derivative == "identity" else x_hat
