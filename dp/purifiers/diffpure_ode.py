"""DiffPure with the probability-flow ODE (Nie et al. 2022, their ablation; methods.md section 1.2): noise to t, then a
deterministic way back.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dp.diffusion.sampling import heun_step, to_01
from dp.diffusion.vp_sde import VPSDE, check_times, fixed_times, walk

SOLVERS = ("euler", "heun", "adjoint")


def purify(
    x: Tensor,
    denoiser,
    classifier,
    rng,
    *,
    on_step: Callable | None = None,
    t: float,
    dt: float,
    end: float,
    beta_min: float,
    beta_max: float,
    solver: str = "euler",
    clamp: str = "plain",
) -> Tensor:
    """x (B,C,H,W) in [0,1] -> x_hat in [0,1]. NFE = ceil((t - end) / dt), twice that with heun.

    `t`: noise time t*; `dt`, `end`: step and last time of the way back; `beta_min`, `beta_max`: rates at times 0 and 1.
    `solver`: `euler` steps the state in time, as the original; `heun` takes the same times in sigma coordinates, where
    the flow has no singular end; `adjoint` has the output of euler and the gradient of the continuous adjoint, which is
    not its derivative. `on_step` is called by `euler` and `heun` alone.
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
    return to_01(state, clamp)  # the state at `end`, not x0, as in the original; Differs: item 27, clamped


class _ContinuousAdjoint(torch.autograd.Function):
    """Euler down the flow; backward, state and adjoint are integrated together from the end up by Euler (Chen et al.
    2018, Alg. 1), as torchdiffeq's odeint_adjoint does for the original: on a grid of its own, from a state that drifts
    from the forward one.
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
                (pulled,) = torch.autograd.grad(change, leaf, adjoint)
            state = state - (time_next - time) * change.detach()
            adjoint = adjoint + (time_next - time) * pulled
        return adjoint, None, None, None
