"""Langevin dynamics of an energy-based model (Hill et al. 2021): a long chain from the image washes out a perturbation
that the energy does not know.
"""

from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.guided import guided_step, inner_gradient
from dp.diffusion.sampling import OnStep, to_01, to_pm1
from dp.purifiers.module import PurifierModule
from dp.rng import Streams


class Langevin(PurifierModule):
    """Purify x (B,C,H,W) in [0,1] by z <- z - grad U(z) + noise n and return x_hat in [0,1]. NFE = steps.

    No denoiser is used. Each step takes one pass forward and one backward through the energy.
    `net`: the energy U (B,) of images (B,C,H,W) in [-1,1]. It holds the factor noise^2 / 2 of Langevin dynamics
    already. `steps`: how many. `noise`: of a step, for images in [-1,1].
    `clamp`: the last clamp to [0,1], see `to_01`; the states of the chain are not clamped.
    `on_step(i, sigma, z, x0)` is called after every step with `noise`, the state before it, and that state moved by the
    gradient alone.
    Raises ValueError unless steps >= 1 and noise >= 0.
    """

    def __init__(self, net: nn.Module, steps: int, noise: float, clamp: str = "plain"):
        if steps < 1 or noise < 0:
            raise ValueError(f"need steps >= 1 and noise >= 0, got steps={steps}, noise={noise}")
        super().__init__()
        self.net = net
        self.steps, self.noise, self.clamp = steps, noise, clamp

    def forward(
        self,
        x: Tensor,
        denoiser: Denoiser | None,
        classifier: Classifier,
        rng: Streams,
        *,
        on_step: OnStep | None = None,
    ) -> Tensor:
        z = to_pm1(x)
        for i in range(self.steps):
            x0 = guided_step(self, self.descended, z)
            if on_step is not None:
                on_step(i, self.noise, z, x0)
            z = x0 + self.noise * rng.randn_like(z)
        return to_01(z, self.clamp)  # Differs (deviation 62: what the classifier is given)

    def descended(self, z: Tensor) -> Tensor:
        """z - grad U(z), (B,C,H,W)."""
        (gradient,), _ = inner_gradient(lambda state: (self.evaluate(self.net, state),), z)
        return z - gradient
