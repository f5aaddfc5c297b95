"""Maximum likelihood of an energy-based model, with samples from persistent Langevin chains (Hill et al. 2021)."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from dp.classifiers import Classifier
from dp.diffusion.sampling import to_01, to_pm1
from dp.output.console import console
from dp.purifiers.langevin import Langevin
from dp.rng import Streams
from dp.subset import Subset
from dp.training.augment import Augment
from dp.training.distributed import world
from dp.training.outputs import write_images, write_table
from dp.training.task import Task

BATCH = 128  # of the judge


class PersistentChains(Task):
    """Maximum likelihood by the mean of U(x) - U(z), times 2 / noise^2: x are images with noise, z states of chains.

    There is one chain for each training image, and all of them begin at uniform noise in [-1,1]. A batch takes as many
    chains as images, moves them by `chain_steps` Langevin steps of the purifier's `noise`, and puts them back.
    `data_noise`: of the images, in [-1,1], at least that of a Langevin step. `judged`: numbers of Langevin steps after
    which the judge classifies. `classifier`: what it classifies with. `seed`: of the chains' start.
    Raises ValueError unless chain_steps >= 1 and data_noise >= 0.
    """

    def __init__(
        self,
        purifier: Langevin,
        data: Subset,
        *,
        chain_steps: int,
        data_noise: float,
        judged: Sequence[int],
        classifier: Classifier,
        seed: int = 0,
        augment: Sequence[Augment] = (),
    ):
        if chain_steps < 1 or data_noise < 0:
            raise ValueError(
                f"need chain_steps >= 1 and data_noise >= 0, got chain_steps={chain_steps}, data_noise={data_noise}"
            )
        self.purifier, self.net, self.classifier = purifier, purifier.net, classifier
        self.x, self.augment = to_pm1(data.x), augment
        self.chain_steps, self.data_noise, self.judged = chain_steps, data_noise, judged
        self.bank = 2 * torch.rand(self.x.shape, generator=Generator().manual_seed(seed)) - 1  # (N,C,H,W)

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a batch on the CPU: images with noise (b,C,H,W), which chains (b,), the chains' unit Gaussian noise
        (b,chain_steps,C,H,W). Raises ValueError for more images than chains, and for several processes, because each
        would have other chains.
        """
        if b > len(self.x) or world()[1] > 1:
            raise ValueError(
                f"need one process and a batch of at most {len(self.x)}, got {world()[1]} processes and batch={b}"
            )
        x = self.x[torch.randint(len(self.x), (b,), generator=generator)]
        for change in self.augment:
            x = change(x, generator)
        x = x + self.data_noise * torch.randn(x.shape, generator=generator)
        chains = torch.randperm(len(self.bank), generator=generator)[:b]
        return x, chains, torch.randn(b, self.chain_steps, *x.shape[1:], generator=generator)

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean loss of a batch as drawn. It moves the chains."""
        x, chains, noise = batch
        device = next(self.net.parameters()).device
        z = self.bank[chains].to(device)
        for n in noise.to(device).unbind(dim=1):
            z = z - self.slope(z) + self.purifier.noise * n
        self.bank[chains] = z.cpu()
        low, high = (self.purifier.evaluate(self.net, images).mean() for images in (x.to(device), z))
        return (low - high) * 2 / self.purifier.noise**2

    def slope(self, z: Tensor) -> Tensor:
        """The gradient of the energy at z (B,C,H,W), without a graph."""
        leaf = z.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.purifier.evaluate(self.net, leaf).sum(), leaf)[0]

    def state(self) -> dict:
        """The chains."""
        return {"bank": self.bank.clone()}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""
        self.bank = state["bank"]

    @torch.no_grad()
    def judge(self, test: Subset, folder: Path, seed: int) -> dict[str, float]:
        """By number of Langevin steps from test images: their accuracy, and the norm of the energy's gradient beside
        that of the noise of a step. In a converged model the states stay images, and the gradient is as small as the
        noise. Pictures: eight test images and their states, and states of 64 chains of the training.
        """
        states, noise, rows = self._states(test, seed), self.purifier.noise * test.x[0].numel() ** 0.5, []
        for steps, z in states.items():
            parts = zip(z.split(BATCH), test.y.split(BATCH), strict=True)
            right = torch.cat([self.classifier(to_01(part)).argmax(1) == y.to(part.device) for part, y in parts])
            slope = torch.cat([self.slope(part) for part in z.split(BATCH)]).flatten(1).norm(dim=1).mean().item()
            rows.append((steps, 100 * right.float().mean().item(), slope, noise))
        write_table(folder / "judge.csv", ("steps", "accuracy", "gradient", "noise"), rows)
        shown = [test.x[:8], *(to_01(z[:8].cpu()) for z in states.values())]
        write_images(folder / "purified.png", torch.cat(shown))
        write_images(folder / "chains.png", to_01(self.bank[:64]))
        words = ", ".join(f"{accuracy:.1f} % (gradient {slope:.2f}) at {steps}" for steps, accuracy, slope, _ in rows)
        console.print(f"energy: right of {len(test.x)} test images by Langevin steps, noise {noise:.2f}: {words}")
        return {f"accuracy/steps={steps}": accuracy for steps, accuracy, _, _ in rows}

    def _states(self, test: Subset, seed: int) -> dict[int, Tensor]:
        """The states (N,C,H,W) in [-1,1] of chains from the test images, by number of steps."""
        purifier, device = copy.copy(self.purifier), next(self.net.parameters()).device
        purifier.steps, found = max(self.judged) + 1, {steps: [] for steps in self.judged}  # seen before the next step

        def keep(i: int, sigma: float, z: Tensor, x0: Tensor) -> None:
            if i in found:
                found[i].append(z)

        for x, ids in zip(test.x.split(BATCH), test.ids.split(BATCH), strict=True):
            purifier(x.to(device), None, self.classifier, Streams(ids, seed, "judge"), on_step=keep)
        return {steps: torch.cat(parts) for steps, parts in found.items()}
