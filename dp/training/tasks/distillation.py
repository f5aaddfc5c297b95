"""Consistency distillation (Song et al. 2023, Alg. 2): one call of the model goes to the end of the teacher's flow."""

import copy

import torch
from torch import Generator, Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import karras_levels
from dp.subset import Subset
from dp.training.tasks.consistency import ConsistencyTask, draw_images, pick


class Distillation(ConsistencyTask):
    """The mean of |f(z, s) - f_target(z', s')|^2 over neighboring levels s > s' (Song et al. 2023, Eq. 7, l2).

    z = x + s n, and z' is one step of Heun's method from s to s' along the flow of the teacher, a posterior mean. There
    are `levels` noise levels from `high` down to the adapter's sigma_min, equally spaced in sigma^(1/rho). The target
    network is an average of f over steps, with `target_decay`. Raises ValueError for a decay outside [0,1].
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: Subset,
        *,
        teacher: Denoiser,
        classifier: Classifier,
        levels: int,
        high: float,
        rho: float,
        target_decay: float,
    ):
        if not 0 <= target_decay <= 1:
            raise ValueError(f"need 0 <= target_decay <= 1, got target_decay={target_decay}")
        super().__init__(denoiser, data, teacher=teacher, classifier=classifier)
        self.levels = karras_levels(self.denoiser.low, high, levels, rho)
        self.target_decay = target_decay
        self.target = copy.deepcopy(self.denoiser).eval().requires_grad_(False)

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a batch on the CPU: x (b,C,H,W) in [-1,1], n (b,C,H,W), the index of the upper level (b,)."""
        x = draw_images(self.x, b, generator)
        n = torch.randn(x.shape, generator=generator)
        return x, n, torch.randint(len(self.levels) - 1, (b,), generator=generator)

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean squared difference of a batch as drawn."""
        x, n, index = batch
        x = x.to(next(self.net.parameters()))
        s, s_next = (pick(self.levels, index + k, x) for k in (0, 1))
        z = x + s * n.to(x)
        with torch.no_grad():
            goal = self.target.denoise(flowed(self.teacher, z, s, s_next), s_next)
        return (self.denoiser.denoise(z, s) - goal).square().mean()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the target network a little."""
        for slow, fast in zip(self.target.net.parameters(), self.net.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.target_decay)

    def state(self) -> dict:
        """The target network."""
        return {"target": self.target.net.state_dict()}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""
        self.target.net.load_state_dict(state["target"])


def flowed(teacher: Denoiser, z: Tensor, s: Tensor, s_next: Tensor) -> Tensor:
    """z (b,C,H,W) at level s after one step of Heun's method to s_next > 0, both (b,1,1,1) (Karras et al. 2022)."""
    slope = (z - teacher(z, s)) / s
    there = z + (s_next - s) * slope
    slope_next = (there - teacher(there, s_next)) / s_next
    return z + (s_next - s) * (slope + slope_next) / 2
