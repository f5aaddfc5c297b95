"""A denoiser whose network is the velocity of a flow from noised to clean images (conditional flow matching)."""

from torch import Tensor, nn

from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import beside


class Flow(Denoiser):
    """Flow matching from x + high n to x along straight lines (Lipman et al. 2023; Collaert et al. 2025).

    At time t the state is z = x0 + sigma n, sigma = (1 - t) high, and its mean velocity is v(z, t) = -high E[n | z]. So
    x0 = z + sigma / high v, and a step of Euler's method on dz / dt = v is a DDIM step. `high`: the noise level at
    t = 0; above it the network is asked for t = 0. `sigma(t)` is still the VP clock. Raises ValueError for high <= 0.
    """

    def __init__(
        self,
        net: nn.Module,
        high: float,
        memory: str = "store",
        size: int | None = None,
    ):
        if high <= 0:
            raise ValueError(f"need high > 0, got high={high}")
        super().__init__(net, memory, size)
        self.high = high

    def velocity(self, z: Tensor, t: Tensor) -> Tensor:
        """v(z, t), (B,C,H,W), for times t (B,) or (1,) in [0,1]."""
        return self.bare(z, t)

    def denoise(self, z: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        s = beside(z, sigma)
        return z + s / self.high * self.velocity(z, (1 - s / self.high).clamp_min(0).flatten())
