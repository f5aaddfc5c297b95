"""DiffPure (Nie et al. 2022) in continuous time: add noise to time t, then solve the reverse VP-SDE (their Eq. 6)."""

import math
from typing import Any

import torch
import torchsde
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.brownian import Brownian
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import OnStep, to_01
from dp.diffusion.vp_sde import VPSDE, check_times, fixed_times, walk
from dp.rng import Streams

SOLVERS = ("own", "torchsde", "adjoint")


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
    solver: str = "own",
    clamp: str = "plain",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by Euler-Maruyama on the reverse SDE and return x_hat in [0,1].

    NFE = ceil((t - end) / dt); torchsde calls the denoiser once more, to learn a shape.
    `t`: noise time t* in (0.001,1]. `end`: the last time of the reversal, in (0,t). `dt`: the step in time, positive.
    `beta_min`, `beta_max`: noise rates of the VP-SDE at times 0 and 1.
    `solver`: `own` and `torchsde` (its `sdeint`) take the same steps with the same noise and have exact gradients.
    `adjoint` (its `sdeint_adjoint`, which the released code uses) has the same output, but its gradient is not the
    derivative of that output.
    `clamp`: the last step's clamp to [0,1], see `to_01`.
    `on_step(i, sigma, z, x0)` is called after every call of the denoiser, by `own` only.
    Raises ValueError for values outside these ranges.
    """
    check_times(t, end, dt)
    if solver not in SOLVERS:
        raise ValueError(f"need solver among {', '.join(SOLVERS)}, got solver={solver!r}")
    sde = VPSDE(beta_min, beta_max)
    state = sde.start(x, t, rng.randn_like(x))
    times = fixed_times(t, end, dt)
    if solver != "own":
        return to_01(_by_torchsde(state, denoiser, rng, sde, times, dt, solver), clamp)

    def step(state: Tensor, z: Tensor, x0: Tensor, time: float, time_next: float) -> Tensor:
        return sde.reverse_step(state, x0, rng.randn_like(state), time, time_next)

    state = walk(sde, state, denoiser, times, step, on_step)
    # The result is the state at `end`, not x0, as in the released code.
    return to_01(state, clamp)  # Differs (deviation 27: clamping and its gradient at the bounds)


class _Reversed:
    """The reverse SDE in torchsde's interface: states (B,d), rising time s = 1 - t."""

    noise_type, sde_type = "diagonal", "ito"  # as in the released code; torchsde's adjoint then takes Milstein steps

    def __init__(self, sde: VPSDE, denoiser: Denoiser, shape: torch.Size):
        self.sde, self.denoiser, self.shape = sde, denoiser, shape

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        time = 1 - s.item()
        x = y.view(self.shape)
        x0 = self.denoiser(self.sde.to_z(x, time), self.sde.sigma(time))
        return self.sde.rate(x, x0, time, share=1.0).reshape(y.shape)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        return y.new_full((1, 1), math.sqrt(self.sde.beta(1 - s.item()))).expand(y.shape)


def _by_torchsde(
    state: Tensor, denoiser: Denoiser, rng: Streams, sde: VPSDE, times: list[float], dt: float, solver: str
) -> Tensor:
    """The state (B,C,H,W) at the last of `times`.

    Times are float64 on the CPU, whatever the state is. The released code has float32 times, so that its end of 1e-5
    is 1.0014e-5.
    """
    y = state.reshape(len(state), -1)
    backward = fixed_times(times[-1], times[0], dt) if solver == "adjoint" else ()
    bm = Brownian(rng, y.detach(), [1 - t for t in times], [1 - t for t in backward])
    ts = torch.tensor([1 - times[0], 1 - times[-1]], dtype=torch.float64)
    adjoint = {"adjoint_params": ()} if solver == "adjoint" else {}  # the weights are constants
    solve: Any = torchsde.sdeint_adjoint if adjoint else torchsde.sdeint
    ys = solve(_Reversed(sde, denoiser, state.shape), y, ts, bm=bm, method="euler", dt=dt, **adjoint)
    return ys[-1].view(state.shape)
