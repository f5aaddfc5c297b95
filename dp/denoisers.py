"""Denoisers: one adapter per checkpoint convention, each the posterior mean E[x0 | z = x0 + sigma n] with the
checkpoint's own clock.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dp.sampling import vp_sigma, vp_sigmas


class Denoiser(nn.Module):
    """E[x0 | z]: z (B,C,H,W) with x0 in [-1,1], sigma a float or (B,1,1,1).

    `nfe` counts network evaluations per image (a call counts once, whatever its batch; recomputation is not counted).
    `memory`: `store` keeps activations for the backward pass, `recompute` keeps only the net's input; the numbers are
    the same.
    `dtype`: the precision of the net alone (autocast); states stay float32 or wider.
    `size`: the side of the images it was trained on, to which a defence resizes others; None takes them as they come.
    """

    def __init__(
        self,
        net: nn.Module,
        memory: str = "store",
        dtype: torch.dtype = torch.float32,
        size: int | None = None,
    ):
        if memory not in ("store", "recompute"):
            raise ValueError(f"need memory store or recompute, got memory={memory!r}")
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.memory = memory
        self.dtype = dtype
        self.size = size
        self.nfe = 0

    def forward(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        self.nfe += 1
        return self.denoise(z, sigma)

    def denoise(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        """The adapter's formula: what the network must be fed and what its output means."""
        raise NotImplementedError  # abstract

    def sigma(self, t: float) -> float:
        """Noise level at time t in [0,1]: the linear 1000-level VP clock, .724 at t = .2 (methods.md section 0)."""
        return vp_sigma(t)

    def bare(self, x: Tensor, label: Tensor) -> Tensor:
        """The network alone, in its own precision, recomputed in the backward pass where memory needs it."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if self.memory == "recompute" and torch.is_grad_enabled() and x.requires_grad:
                out = checkpoint(self.net, x, label, use_reentrant=False, preserve_rng_state=False)
            else:
                out = self.net(x, label)
        assert isinstance(out, Tensor)
        return out.to(x.dtype)


class EDM(Denoiser):
    """Karras et al. 2022, Eq. 7: D = c_skip z + c_out F(c_in z, ln(sigma) / 4)."""

    def __init__(
        self,
        net: nn.Module,
        sigma_data: float = 0.5,
        memory: str = "store",
        dtype: torch.dtype = torch.float32,
        size: int | None = None,
    ):
        super().__init__(net, memory, dtype, size)
        self.sigma_data = sigma_data

    def denoise(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        s = torch.as_tensor(sigma, dtype=z.dtype, device=z.device).reshape(-1, 1, 1, 1)  # (1,1,1,1) or (B,1,1,1)
        total = s**2 + self.sigma_data**2
        out = self.bare(z * total.rsqrt(), s.log().flatten() / 4)
        return z * (self.sigma_data**2 / total) + out * (s * self.sigma_data * total.rsqrt())


class EpsNet(Denoiser):
    """A discrete noise predictor eps(x_k, k) on the linear schedule (Ho et al. 2020): x0 = z - sigma * eps.

    `sigma(t)` is that of the nearest index, so the grid and the net agree. Channels beyond the image's (a learned
    variance) are dropped.
    """

    def sigma(self, t: float) -> float:
        if not 0 <= t <= 1:
            raise ValueError(f"need a time t in [0, 1], got t={t}")
        table = vp_sigmas()
        return table[min(round(t * len(table)), len(table) - 1)].item()

    def denoise(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        s = torch.as_tensor(sigma, dtype=torch.float64).cpu().flatten()  # (1,) or (B,)
        k = (vp_sigmas().log()[None] - s.log()[:, None]).abs().argmin(dim=1)  # nearest index
        s = s.to(device=z.device, dtype=z.dtype).reshape(-1, 1, 1, 1)
        eps = self.bare(z * (1 + s**2).rsqrt(), k.to(z.device))
        return z - s * eps[:, : z.shape[1]]


class Gaussian(Denoiser):
    """Exact for x0 ~ N(mean, std^2) per pixel: E[x0|z] = mean + std^2 / (std^2 + sigma^2) (z - mean). The tests' ground
    truth.
    """

    def __init__(self, mean: float = 0.0, std: float = 0.5):
        super().__init__(nn.Identity())
        self.mean, self.std = mean, std

    def denoise(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        gain = self.std**2 / (self.std**2 + sigma**2)
        return self.mean + gain * (z - self.mean)
