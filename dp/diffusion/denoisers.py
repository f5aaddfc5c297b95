"""Denoisers: one adapter per checkpoint convention.

Each computes the posterior mean E[x0 | z = x0 + sigma n] and has the checkpoint's own clock, time to sigma.
"""

import functools
import math

import torch
from torch import Tensor, nn

from dp.compiled import Compiled
from dp.diffusion.checkpointing import ActivationCheckpointing
from dp.diffusion.sampling import beside, cosine_sigmas, vp_log_sigmas, vp_sigma, vp_sigmas
from dp.nets.blocks import ClassConditional
from dp.precision import narrowed


class Denoiser(nn.Module):
    """The posterior mean E[x0 | z] of z (B,C,H,W), x0 in [-1,1]; sigma is a float or (B,1,1,1).

    With `label` (B,) int64 it is E[x0 | z, class]. `classes`: how many there are, 0 for a network without classes.
    Without a label a network with classes is asked for no class.
    `nfe` counts network evaluations per image: a call counts once, whatever its batch, and recomputation not at all.
    `memory`: `store` keeps all activations for the backward pass. `recompute` is activation checkpointing: the newest
    `recompute.keep` calls (3) keep their activations, of the others only the network's input is kept. Values, first and
    second derivatives are the same, bit for bit.
    `size`: the side of the images that it was trained on, to which a defense resizes others; None resizes nothing.
    `compiled`: what calls the network where a run compiles it, see `Compiled`.
    Raises ValueError for another `memory`.
    """

    def __init__(
        self,
        net: nn.Module,
        memory: str = "store",
        size: int | None = None,
    ):
        if memory not in ("store", "recompute"):
            raise ValueError(f"need memory store or recompute, got memory={memory!r}")
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.compiled: Compiled | None = None
        self.memory = memory
        self.size = size
        self.classes = net.classes if isinstance(net, ClassConditional) else 0
        self.nfe = 0
        self.recompute = ActivationCheckpointing()

    def forward(self, z: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        if label is not None:
            self.check_label(z, label)
        self.nfe += 1
        return self.denoise(z, sigma) if label is None else self.denoise(z, sigma, label)

    def denoise(self, z: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        """The adapter's formula: how z is scaled for the network, and what the network's output means. A denoiser
        without classes is never called with a label, and need not take one.
        """
        raise NotImplementedError  # abstract

    def check_label(self, z: Tensor, label: Tensor) -> None:
        """Raises ValueError unless `label` names a class of this denoiser for each image of z (B,C,H,W)."""
        if not self.classes:
            raise ValueError(
                "need a denoiser with classes, got one without: choose a class-conditional network, such as "
                "digits_conditional or edm_cifar10_cond"
            )
        if label.dtype != torch.int64 or label.shape != z.shape[:1]:
            raise ValueError(f"need labels ({len(z)},) int64, got {tuple(label.shape)} {label.dtype}")
        here = label.device.type == "cpu"  # else the host would wait; an embedding on a GPU refuses other labels itself
        if here and not 0 <= int(label.min()) <= int(label.max()) < self.classes:
            found = f"{int(label.min())} to {int(label.max())}"
            raise ValueError(f"need labels from 0 to {self.classes - 1}, got labels from {found}")

    def with_variance(self, z: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """The posterior mean, and the further output channels u (B,C,H,W) that predict a step's variance, by one
        network evaluation. See `dp.diffusion.ddpm.learned_variance`. Raises ValueError for a network without them.
        """
        raise ValueError(
            f"need a noise predictor with learned variance, got {type(self).__name__}: set variance=small or large"
        )

    def sigma(self, t: float) -> float:
        """Noise level at time t in [0,1] by the linear 1000-level VP clock: 0.724 at t = 0.2."""
        return vp_sigma(t)

    def bare(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """The network alone, in its own precision, with checkpointing if chosen: x (B,C,H,W), the noise label `noise`
        (B,) or (1,), the class `label` (B,).
        """
        if self.memory == "store":
            return self._net(x, noise, label)
        return self.recompute(functools.partial(self._net, noise=noise, label=label), x)

    def _net(self, x: Tensor, noise: Tensor, label: Tensor | None) -> Tensor:
        given, call = narrowed(x, self.net), self.compiled or self.net  # the noise label stays wide
        out = call(given, noise) if label is None else call(given, noise, label)
        return out.to(x.dtype)


class EDM(Denoiser):
    """Karras et al. 2022, Eq. 7: D = c_skip z + c_out F(c_in z, ln(sigma) / 4).

    Raises ValueError for sigma_data <= 0.
    """

    def __init__(
        self,
        net: nn.Module,
        sigma_data: float = 0.5,
        memory: str = "store",
        size: int | None = None,
    ):
        if sigma_data <= 0:
            raise ValueError(f"need sigma_data > 0, got sigma_data={sigma_data}")
        super().__init__(net, memory, size)
        self.sigma_data = sigma_data

    def denoise(self, z: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        s = beside(z, sigma)  # (1,1,1,1) or (B,1,1,1)
        total = s**2 + self.sigma_data**2
        out = self.bare(z * total.rsqrt(), s.log().flatten() / 4, label)
        return z * (self.sigma_data**2 / total) + out * (s * self.sigma_data * total.rsqrt())


class NoisePredictor(Denoiser):
    """A predictor of noise at discrete levels: x0 = z - sigma eps. Output channels beyond the image's predict a
    variance.
    """

    def labels(self, s: Tensor, z: Tensor) -> Tensor:
        """The network's labels of noise levels s, (1,) or (B,) float64, on their device."""
        raise NotImplementedError  # abstract

    def denoise(self, z: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        return self._posterior(z, sigma, label)[0]

    def with_variance(self, z: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        self.nfe += 1
        x0, rest = self._posterior(z, sigma, None)
        if rest.shape != z.shape:
            found = f"got {rest.shape[1]} channels beyond the {z.shape[1]} of the image"
            raise ValueError(f"need a network with learned variance, {found}: set variance=small or large")
        return x0, rest

    def _posterior(self, z: Tensor, sigma: float | Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """The posterior mean, and the output channels beyond the image's."""
        if isinstance(sigma, Tensor):
            labels = self.labels(sigma.to(z.device, torch.float64).flatten(), z)  # (1,) or (B,)
        else:  # the host finds it, and does not wait for the device
            labels = self.labels(torch.tensor([sigma], dtype=torch.float64), z)
            labels = torch.full((1,), labels.item(), dtype=labels.dtype, device=z.device)
        s = beside(z, sigma)
        out = self.bare(z * (1 + s**2).rsqrt(), labels, label)
        return z - s * out[:, : z.shape[1]], out[:, z.shape[1] :]


class EpsNet(NoisePredictor):
    """A discrete noise predictor eps(x_k, k) on the linear schedule (Ho et al. 2020): x0 = z - sigma * eps.

    `sigma(t)` is the noise level of the nearest index, so that time grid and network agree. Output channels beyond the
    image's, which predict a variance, are for `with_variance` alone.
    """

    def sigma(self, t: float) -> float:
        if not 0 <= t <= 1:
            raise ValueError(f"need a time t in [0, 1], got t={t}")
        table = vp_sigmas()
        return table[min(round(t * len(table)), len(table) - 1)].item()

    def labels(self, s: Tensor, z: Tensor) -> Tensor:
        return (vp_log_sigmas(s.device) - s.log()[:, None]).abs().argmin(dim=1)  # the nearest index


class VP(Denoiser):
    """A noise predictor in continuous time (score-SDE's VP, EDM's VPPrecond): x0 = z - sigma F(c_in z, 999 t(sigma)).

    abar(t) = exp(-beta_d t^2 / 2 - beta_min t) (Song et al. 2021, Eq. 32). Labels (`levels` - 1) t are not rounded.
    """

    def __init__(
        self,
        net: nn.Module,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        levels: int = 1000,
        memory: str = "store",
        size: int | None = None,
    ):
        super().__init__(net, memory, size)
        self.beta_d, self.beta_min, self.levels = beta_d, beta_min, levels

    def sigma(self, t: float) -> float:
        """Noise level sqrt(1 / abar(t) - 1) at time t in [0,1]: 0.720 at t = 0.2."""
        if not 0 <= t <= 1:
            raise ValueError(f"need a time t in [0, 1], got t={t}")
        return math.sqrt(math.expm1(self.beta_d * t**2 / 2 + self.beta_min * t))

    def denoise(self, z: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        s = beside(z, sigma, torch.float64)  # (1,1,1,1) or (B,1,1,1)
        t = ((self.beta_min**2 + 2 * self.beta_d * torch.log1p(s**2)).sqrt() - self.beta_min) / self.beta_d
        noise = ((self.levels - 1) * t).to(z.dtype).flatten()
        return z - s.to(z.dtype) * self.bare(z * (1 + s**2).rsqrt().to(z.dtype), noise, label)


class VE(Denoiser):
    """EDM's VEPrecond (its NCSN++ baselines): x0 = z + sigma F(z, ln(sigma / 2)). Its clock is the VP clock."""

    def denoise(self, z: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        s = beside(z, sigma)
        return z + s * self.bare(z, (s / 2).log().flatten(), label)


class IDDPM(NoisePredictor):
    """EDM's iDDPMPrecond (Karras et al. 2022, Table 1): a noise predictor on the cosine schedule.

    The schedule is that of Nichol and Dhariwal (2021). The network's label is the index of the nearest of `levels` + 1
    sigmas. Output channels beyond the image's, which predict a variance, are for `with_variance` alone.
    """

    def __init__(
        self,
        net: nn.Module,
        c_1: float = 0.001,
        c_2: float = 0.008,
        levels: int = 1000,
        memory: str = "store",
        size: int | None = None,
    ):
        super().__init__(net, memory, size)
        self.schedule = levels, c_1, c_2

    def labels(self, s: Tensor, z: Tensor) -> Tensor:
        k = (cosine_sigmas(*self.schedule, s.device) - s[:, None]).abs().argmin(dim=1)  # the nearest
        return (k - 1).to(z.dtype)  # the network's labels begin at 0


class ScoreVE(Denoiser):
    """A score network whose label is sigma itself (score-SDE's VE): x0 = z + sigma^2 score(z, sigma)."""

    def denoise(self, z: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        s = beside(z, sigma)
        return z + s**2 * self.bare(z, s.flatten(), label)


class Consistency(Denoiser):
    """Consistency models (Song et al. 2023, App. C): D = c_skip z + c_out F(c_in z, clock ln(sigma)), and D = z at
    sigma_min.

    `boundary`: False for the `edm_*` files of that work, which are plain EDM denoisers. `clock`: the factor of the
    noise label, 250 in that work. The D of a consistency model is the end of the probability flow, not the posterior
    mean.
    """

    def __init__(
        self,
        net: nn.Module,
        boundary: bool = True,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        clock: float = 250.0,
        memory: str = "store",
        size: int | None = None,
    ):
        if sigma_data <= 0:
            raise ValueError(f"need sigma_data > 0, got sigma_data={sigma_data}")
        super().__init__(net, memory, size)
        self.boundary, self.sigma_data, self.clock = boundary, sigma_data, clock
        self.low = sigma_min if boundary else 0.0

    def denoise(self, z: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        s = beside(z, sigma)
        above, total = s - self.low, s**2 + self.sigma_data**2
        out = self.bare(z * total.rsqrt(), self.clock * s.log().flatten(), label)
        return z * (self.sigma_data**2 / (above**2 + self.sigma_data**2)) + out * (
            above * self.sigma_data * total.rsqrt()
        )


class Gaussian(Denoiser):
    """The exact posterior mean for x0 ~ N(mean, std^2) per pixel: the ground truth of tests.

    E[x0 | z] = mean + std^2 / (std^2 + sigma^2) (z - mean).
    """

    def __init__(self, mean: float = 0.0, std: float = 0.5):
        super().__init__(nn.Identity())
        self.mean, self.std = mean, std

    def denoise(self, z: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        gain = self.std**2 / (self.std**2 + sigma**2)
        return self.mean + gain * (z - self.mean)
