"""Contrastive guidance (Bai et al. 2024): the reverse SDE of DiffPure, whose score is pulled by a contrastive loss."""

import functools
from itertools import pairwise

import torch
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.guided import guided_step
from dp.diffusion.sampling import OnStep, to_01, with_identity
from dp.diffusion.vp_sde import VPSDE, check_times, fixed_times
from dp.purifiers.contrast import ESTIMATORS, Contrast, draw_weights, new_heads, pull
from dp.rng import Streams

DERIVATIVES = ("exact", "identity")


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    t: float,
    dt: float,
    end: float,
    beta_min: float,
    beta_max: float,
    gamma: float,
    first: int,
    temperature: float,
    tau_plus: float,
    beta: float,
    lr: float,
    estimator: str = "hard",
    clamp: str = "plain",
    derivative: str = "exact",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by Euler-Maruyama on the guided reverse SDE and return x_hat in [0,1].

    NFE = ceil((t - end) / dt). Each guided step also calls the classifier, forward and backward.
    `t`, `dt`, `end`, `beta_min`, `beta_max`: as in `diffpure_sde`.
    `gamma`: strength of the guide. The predicted noise of a state changes by gamma times the gradient of the
    contrastive loss between this state and the one before. With 0 the method is `diffpure_sde`, bit for bit, and the
    classifier is not called.
    `first`: the first guided step, counted from 0, at least 1, because step 0 has no state before it. Without a guide
    it is not used.
    `temperature`, `tau_plus`, `beta`, `lr`, `estimator`: of the loss and of its small network, see `Contrast`. Each
    image has a network of its own, which is drawn anew in each call and trained by one step of Adam in each guided
    step.
    `clamp`: the last step's clamp to [0,1], see `to_01`. `derivative`: what an attacker may use in place of the
    derivative: `exact` or `identity` (BPDA). The values are the same.
    `on_step(i, sigma, z, x0)` is called after every call of the denoiser, with x0 before it is guided.
    Raises ValueError for values outside these ranges.
    """
    check_times(t, end, dt)
    times = fixed_times(t, end, dt)
    _check(gamma, first, len(times) - 1, derivative)
    contrast = Contrast(temperature, tau_plus, beta, lr, estimator)
    _check_contrast(contrast)
    sde, first = VPSDE(beta_min, beta_max), first if gamma > 0 else len(times)  # without a guide no step is guided
    with torch.set_grad_enabled(torch.is_grad_enabled() and derivative != "identity"):
        state = sde.start(x, t, rng.randn_like(x))
        state = _chain(state, denoiser, classifier, rng, sde, times, contrast, gamma, first, on_step)
    x_hat = to_01(state, clamp)
    return with_identity(x_hat, x) if derivative == "identity" else x_hat


def _check(gamma: float, first: int, steps: int, derivative: str) -> None:
    if gamma < 0:
        raise ValueError(f"need gamma >= 0, got gamma={gamma}")
    if first < 1 or (gamma > 0 and first >= steps):
        raise ValueError(f"need 1 <= first < {steps} steps, or gamma=0 for no guide, got first={first}, gamma={gamma}")
    if derivative not in DERIVATIVES:
        raise ValueError(f"need derivative among {', '.join(DERIVATIVES)}, got derivative={derivative!r}")


def _check_contrast(contrast: Contrast) -> None:
    if not (0 <= contrast.tau_plus < 1 and min(contrast.temperature, contrast.lr) > 0 and contrast.beta >= 0):
        raise ValueError(f"need temperature > 0, 0 <= tau_plus < 1, beta >= 0 and lr > 0, got {contrast}")
    if contrast.estimator not in ESTIMATORS:
        raise ValueError(f"need estimator among {', '.join(ESTIMATORS)}, got estimator={contrast.estimator!r}")


def _chain(
    state: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    sde: VPSDE,
    times: list[float],
    contrast: Contrast,
    gamma: float,
    first: int,
    on_step: OnStep | None,
) -> Tensor:
    """The state (B,C,H,W) at the last of the falling `times`, with the guide from step `first` on."""
    given = {"denoiser": denoiser, "classifier": classifier, "sde": sde, "contrast": contrast, "gamma": gamma}
    logits, heads = state, []
    for i, (time, time_next) in enumerate(pairwise(times)):
        if i == first - 1:  # Differs (deviation 84: calls of the contrastive guide): its first state, not a probe
            # Differs (deviation 85: classifier of the contrastive guide): the attacked one
            logits = classifier(state)
            # Differs (deviation 83: batch of the contrastive loss): a network for each image, from its own stream
            heads = new_heads(draw_weights(logits, rng.draw(0)))
        before, n = state, rng.randn_like(state)
        if i < first:
            x0 = denoiser(sde.to_z(state, time), sde.sigma(time))
            state = sde.reverse_step(state, x0, n, time, time_next)
        else:
            step = functools.partial(_step, **given, time=time, time_next=time_next, count=i - first + 1)
            state, x0, logits, *heads = guided_step(denoiser, step, state, n, logits, *heads)
        if on_step is not None:
            on_step(i, sde.sigma(time), sde.to_z(before, time), x0)
    return state


def _step(
    state: Tensor,
    n: Tensor,
    logits: Tensor,
    *heads: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    sde: VPSDE,
    contrast: Contrast,
    gamma: float,
    time: float,
    time_next: float,
    count: int,
) -> tuple[Tensor, ...]:
    """The next state, the denoised image, the state's logits and the trained heads. `logits`: of the state before."""
    sigma = sde.sigma(time)
    x0 = denoiser(sde.to_z(state, time), sigma)
    gradient, logits, trained = pull(state, logits, classifier, heads, contrast, count)
    guided = x0 - sigma * gamma * gradient  # the predicted noise plus gamma times the gradient
    return sde.reverse_step(state, guided, n, time, time_next), x0, logits, *trained
