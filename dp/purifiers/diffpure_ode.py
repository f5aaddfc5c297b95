"""DiffPure with the probability-flow ODE (an ablation of Nie et al. 2022): add noise up to time t, then solve back."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import OnStep, heun_step, to_01
from dp.diffusion.vp_sde import VPSDE, check_times, fixed_times, walk
from dp.rng import Streams

SOLVERS = ("euler", "heun", "adjoint")


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
    solver: str = "euler",
    clamp: str = "plain",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by the probability flow and return x_hat in [0,1].

    NFE = ceil((t - end) / dt), twice that for `heun`.
    `t`: noise time t* in (0.001,1]. `end`: the last time of the way back, in (0,t). `dt`: the step in time, positive.
    `beta_min`, `beta_max`: noise rates of the VP-SDE at times 0 and 1.
    `solver`: `euler` takes steps in time, as the released code does. `heun` uses the same times in sigma coordinates,
    where the flow has no singular end. `adjoint` has the output of `euler` and the gradient of the continuous adjoint
    method, which is not the derivative of that output.
    `clamp`: the last step's clamp to [0,1], see `to_01`.
    `on_step(i, sigma, z, x0)` is called after every call of the denoiser, by `euler` and `heun` only.
    Raises ValueError for values outside these ranges.
    """
    check_times(t, end, dt)
    if solver not in SOLVERS:
        raise ValueError(f"need solver among {', '.join(SOLVERS)}, got solver={solver!r}")
    sde = VPSDE(beta_min, beta_max)
    state = sde.start(x, t, rng.randn_like(x))

    def rate(state: Tensor, time: float) -> Tensor:
        return sde.rate(state, denoiser(sde.to_z(state, time), sde.sigma(time)), time, share=0.5)

    times = fixed_times(t, end, dt)
    if solver == "adjoint":
        return to_01(_ContinuousAdjoint.apply(state, rate, times, fixed_times(end, t, dt)), clamp)

    def euler(state: Tensor, z: Tensor, x0: Tensor, time: float, time_next: float) -> Tensor:
        return state + (time - time_next) * sde.rate(state, x0, time, share=0.5)

    def heun(state: Tensor, z: Tensor, x0: Tensor, time: float, time_next: float) -> Tensor:
        return sde.from_z(heun_step(z, x0, denoiser, sde.sigma(time), sde.sigma(time_next)), time_next)

    state = walk(sde, state, denoiser, times, {"euler": euler, "heun": heun}[solver], on_step)
    # The result is the state at `end`, not x0, as in the released code.
    return to_01(state, clamp)  # Differs (deviation 27: clamping and its gradient at the bounds)


class _ContinuousAdjoint(torch.autograd.Function):
    """Euler steps down the flow, with the gradient of the continuous adjoint method (Chen et al. 2018, Alg. 1).

    The backward pass integrates state and adjoint together by Euler steps from the end up, as torchdiffeq's
    odeint_adjoint does for the released code. It has its own time grid, and its state drifts from the forward one.
    """

    @staticmethod
    def forward(ctx: Any, state: Tensor, rate: Callable, times: Sequence[float], back: Sequence[float]) -> Tensor:
        for time, time_next in pairwise(times):
            state = state + (time - time_next) * rate(state, time)
        ctx.save_for_backward(state)
        ctx.rate, ctx.back = rate, back
        return state

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        (state,), (adjoint,) = ctx.saved_tensors, grads
        for time, time_next in pairwise(ctx.back):
            with torch.enable_grad():
                leaf = state.detach().requires_grad_()
                change = ctx.rate(leaf, time)
                (vjp,) = torch.autograd.grad(change, leaf, adjoint)
            state = state - (time_next - time) * change.detach()
            adjoint = adjoint + (time_next - time) * vjp
        return adjoint, None, None, None
