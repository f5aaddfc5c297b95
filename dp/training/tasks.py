"""Training tasks: batches in a seeded order, their loss, and the quality on held-out images."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import EDM, Denoiser, EpsNet
from dp.diffusion.sampling import LEVELS, ancestral_step, time_grid, to_pm1, vp_sigmas
from dp.subset import Subset

Augment = Callable[[Tensor, Generator], Tensor]


def shift(x: Tensor, generator: Generator, *, reach: int, mode: str) -> Tensor:
    """Move each image of x (B,C,H,W) by up to `reach` pixels along both axes. `mode`: how F.pad fills the border."""
    b, c, h, w = x.shape
    padded = F.pad(x, [reach] * 4, mode=mode)
    dy, dx = torch.randint(0, 2 * reach + 1, (2, b), generator=generator)
    rows = (dy[:, None] + torch.arange(h))[:, None, :, None].expand(b, c, h, w + 2 * reach)
    cols = (dx[:, None] + torch.arange(w))[:, None, None, :].expand(b, c, h, w)
    return padded.gather(2, rows).gather(3, cols)


def flip(x: Tensor, generator: Generator) -> Tensor:
    """Mirror each image of x (B,C,H,W) left to right with probability 1/2."""
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, x.flip(3), x)


class Denoising:
    """Denoising: the mean of weight(sigma) (D(x + sigma n; sigma) - x)^2 over images x in [-1,1].

    Images are drawn with replacement. For an `EDM` adapter ln sigma ~ N(p_mean, p_std^2), and the weight is
    (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022, Table 1); `clamp`: bounds of sigma, or None.
    For an `EpsNet` sigma belongs to a uniform index
    of the linear schedule, and the weight is 1 / sigma^2, so that the loss is |eps - n|^2 (Ho et al. 2020, Eq. 14).
    A network with classes is given the class of each image; with probability `label_dropout` it is given none, so that
    it also learns to denoise without a class (Ho and Salimans 2022, Alg. 1).
    Raises ValueError for another adapter, and for a `label_dropout` outside [0,1) or of a network without classes.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: Subset,
        *,
        augment: Sequence[Augment] = (),
        p_mean: float,
        p_std: float,
        clamp: Sequence[float] | None,
        label_dropout: float = 0.0,
    ):
        if not 0 <= label_dropout < 1 or (label_dropout and not denoiser.classes):
            raise ValueError(
                f"need 0 <= label_dropout < 1, and 0 for a network without classes, got label_dropout={label_dropout}"
            )
        if not isinstance(denoiser, EDM | EpsNet):
            raise ValueError(
                f"need an EDM or EpsNet adapter to train in, got {type(denoiser).__name__}: choose another"
            )
        self.denoiser, self.net = denoiser, denoiser.net
        self.x, self.y, self.augment = to_pm1(data.x), data.y, augment
        self.label_dropout = label_dropout
        self.p_mean, self.p_std, self.clamp = p_mean, p_std, clamp

    def levels(self, b: int, generator: Generator) -> Tensor:
        """Random noise levels (b,1,1,1)."""
        if isinstance(self.denoiser, EpsNet):
            return vp_sigmas()[torch.randint(LEVELS, (b,), generator=generator)].float().view(-1, 1, 1, 1)
        sigma = torch.exp(self.p_mean + self.p_std * torch.randn(b, 1, 1, 1, generator=generator))
        return sigma if self.clamp is None else sigma.clamp(*self.clamp)

    def weight(self, sigma: Tensor) -> Tensor:
        """Weight of a squared error at this noise level, of sigma's shape."""
        if isinstance(self.denoiser, EpsNet):
            return 1 / sigma**2
        sigma_data = self.denoiser.sigma_data
        return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a batch on the CPU: x (b,C,H,W), sigma (b,1,1,1), n (b,C,H,W), and for a network with classes their
        labels (b,), -1 for no class.
        """
        index = torch.randint(len(self.x), (b,), generator=generator)
        x = self.x[index]
        for change in self.augment:
            x = change(x, generator)
        batch = x, self.levels(b, generator), torch.randn(x.shape, generator=generator)
        if not self.denoiser.classes:
            return batch
        dropped = torch.rand(b, generator=generator) < self.label_dropout
        return *batch, self.y[index].masked_fill(dropped, -1)

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean loss of a batch as drawn."""
        x, sigma, n, *labels = batch
        device = next(self.net.parameters()).device
        x, weight = x.to(device), self.weight(sigma).to(device)
        z = x + sigma.to(device) * n.to(device)
        return (weight * (self.denoiser.denoise(z, sigma, *labels) - x) ** 2).mean()

    def state(self) -> dict:
        """What `draw` remembers between batches: nothing."""
        return {}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""
        assert not state, f"need no state for a denoiser, got {list(state)}"


class Classifying:
    """Classification by cross entropy. Each epoch is a seeded permutation; an incomplete last batch is left out."""

    def __init__(self, classifier: Classifier, data: Subset, *, augment: Sequence[Augment] = ()):
        self.classifier, self.net = classifier, classifier.net
        self.data, self.augment = data, augment
        self.order = torch.empty(0, dtype=torch.long)  # the rest of the epoch

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a batch on the CPU: x (b,C,H,W) in [0,1], y (b,). Raises ValueError for too few images."""
        if b > len(self.data.x):
            raise ValueError(f"need a batch of at most {len(self.data.x)} images, got batch={b}")
        if len(self.order) < b:
            self.order = torch.randperm(len(self.data.x), generator=generator)
        index, self.order = self.order[:b], self.order[b:]
        x = self.data.x[index]
        for change in self.augment:
            x = change(x, generator)
        return x, self.data.y[index]

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean cross entropy of a batch as drawn."""
        x, y = batch
        device = next(self.net.parameters()).device
        return F.cross_entropy(self.classifier(x.to(device)), y.to(device))

    def state(self) -> dict:
        """What `draw` remembers between batches."""
        return {"order": self.order.clone()}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""
        self.order = state["order"]


@torch.no_grad()
def accuracy(classifier: Classifier, data: Subset, batch: int = 128) -> float:
    """Percent of images that are classified correctly."""
    device = next(classifier.parameters()).device
    parts = zip(data.x.split(batch), data.y.split(batch), strict=True)
    right = sum((classifier(x.to(device)).argmax(1).cpu() == y).sum().item() for x, y in parts)
    return 100 * right / len(data.x)


@torch.no_grad()
def held_out(task: Denoising, data: Subset, times: Sequence[float], seed: int, batch: int = 128) -> dict[float, float]:
    """{sigma(t): mean loss of the images at that level} for each time t, with seeded noise, and with the images' labels
    if the network takes them.
    """
    losses = {}
    for t in times:
        generator, sigma = torch.Generator().manual_seed(seed), task.denoiser.sigma(t)
        sums = []
        for x, y in zip(to_pm1(data.x).split(batch), data.y.split(batch), strict=True):
            noise = torch.full((len(x), 1, 1, 1), sigma), torch.randn(x.shape, generator=generator)
            sums.append(task.loss(x, *noise, *([y] if task.denoiser.classes else [])) * len(x))
        losses[sigma] = (torch.stack(sums).sum() / len(data.x)).item()
    return losses


@torch.no_grad()
def samples(denoiser: Denoiser, shape: Sequence[int], *, t: float, steps: int, seed: int) -> Tensor:
    """Generate images of `shape` (B,C,H,W), in about [-1,1], from noise at time t by DDIM steps. A denoiser with
    classes is asked for them in turn.
    """
    device = next(denoiser.parameters()).device
    label = torch.arange(shape[0], device=device) % denoiser.classes if denoiser.classes else None
    sigmas = [*(denoiser.sigma(u) for u in time_grid(t, steps)[:-1]), 0.0]
    z = sigmas[0] * torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)).to(device)
    for sigma, sigma_next in pairwise(sigmas):
        z = ancestral_step(z, denoiser(z, sigma, label), sigma, sigma_next, None, eta=0.0)
    return z.cpu()


def grid(x: Tensor, columns: int, times: int) -> Tensor:
    """One picture (rows,columns,3) of images (B,C,H,W) in [0,1] in white frames, enlarged `times` times."""
    x = F.pad(x.expand(-1, 3, -1, -1), (0, 1, 0, 1), value=1.0)
    tiles = x.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)  # (rows,H,columns,W,3)
    return tiles.flatten(2, 3).flatten(0, 1).repeat_interleave(times, 0).repeat_interleave(times, 1)
