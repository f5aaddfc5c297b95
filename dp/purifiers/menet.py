"""ME-Net (Yang et al. 2019, arXiv 1905.11971): random pixels are dropped, and a low-rank matrix is completed.

Its classifier is trained on such images.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.sampling import OnStep, to_01, to_pm1
from dp.purifiers.spectral import largest, parts_of, spectral
from dp.rng import Streams

METHODS, CHANNELS = ("usvt", "soft"), ("concat", "separate")


def purify(
    x: Tensor,
    denoiser: Denoiser | None,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    p: float,
    method: str,
    channels: str,
    keep: float,
    shrinkage: float,
    tolerance: float,
    rounds: int,
    derivative: str = "exact",
    clamp: str = "plain",
) -> Tensor:
    """Drop pixels of x (B,C,H,W) in [0,1] and complete the rest to x_hat in [0,1]. It uses no network: NFE = 0.

    `p`: the probability in (0,1] with which a pixel is kept. The other arguments are those of `completed`.
    `on_step` is never called. Raises ValueError for values outside these ranges.
    """
    if not 0 < p <= 1:
        raise ValueError(f"need 0 < p <= 1, got p={p}")
    seen = rng.uniform_like(matrices(x, channels)[:, :1]) < p
    return completed(
        x, seen, method=method, channels=channels, keep=keep, shrinkage=shrinkage, tolerance=tolerance, rounds=rounds,
        derivative=derivative, clamp=clamp,
    )  # fmt: skip


def matrices(x: Tensor, channels: str) -> Tensor:
    """x (B,C,H,W) as one matrix (B,1,H,C*W) with the channels side by side, or as one for each channel (B,C,H,W).

    Raises ValueError for a `channels` that is not `concat` or `separate`.
    """
    if channels not in CHANNELS:
        raise ValueError(f"need channels among {', '.join(CHANNELS)}, got channels={channels!r}")
    return x.movedim(1, 2).flatten(2).unsqueeze(1) if channels == "concat" else x


def completed(
    x: Tensor,
    seen: Tensor,
    *,
    method: str,
    channels: str,
    keep: float,
    shrinkage: float,
    tolerance: float,
    rounds: int,
    derivative: str = "exact",
    clamp: str = "plain",
) -> Tensor:
    """Complete the pixels of x (B,C,H,W) in [0,1] that are not `seen` and return x_hat in [0,1], computed in float64.

    `seen`: True where a pixel is kept, (B,1,H,C*W) with channels=concat, (B,1,H,W) with channels=separate: one mask
    for all channels. `method`: `usvt`, universal singular value thresholding (Chatterjee 2015), keeps the first
    int(keep * H) singular values and divides by the share of the seen pixels; `soft`, soft-impute (Mazumder et al.
    2010), lowers the singular values by the largest one / `shrinkage`, puts the result in place of the pixels that were
    not seen, and repeats this at most `rounds` times, until they change by less than `tolerance`, relative. It returns
    the seen pixels as they were. `derivative`: see `spectral`. `clamp`: the last clamp to [0,1], see `to_01`.
    Raises ValueError for values outside these ranges.
    """
    if method not in METHODS or not 0 < keep <= 1 or min(shrinkage, tolerance) <= 0 or rounds < 1:
        found = f"{method=}, {keep=}, {shrinkage=}, {tolerance=}, {rounds=}"
        wanted = f"method among {', '.join(METHODS)}, 0 < keep <= 1, shrinkage, tolerance > 0 and rounds >= 1"
        raise ValueError(f"need {wanted}, got {found}")
    b, c, h, _ = x.shape
    stack = matrices(to_pm1(x.double()), channels)
    masks, matrix = seen.expand_as(stack).flatten(0, 1), stack.flatten(0, 1)  # (B or B*C,H,width)
    given = torch.where(masks, matrix, 0.0)
    if method == "usvt":
        out = _truncated(given, masks, int(keep * h), derivative)
    else:
        out = _imputed(given, masks, shrinkage, tolerance, rounds, derivative)
    out = out.unflatten(0, (b, -1))
    out = out.squeeze(1).unflatten(2, (c, -1)).movedim(2, 1) if channels == "concat" else out
    return to_01(out, clamp).to(x.dtype)


def _truncated(given: Tensor, seen: Tensor, rank: int, derivative: str) -> Tensor:
    """The first `rank` singular values of the matrices, divided by the share of the seen pixels."""
    if rank < 1:
        raise ValueError(f"need keep * H >= 1, got int(keep * H) = {rank}")
    parts = parts_of(given)
    slope = (torch.arange(parts.s.shape[1], device=given.device) < rank).to(parts.s).expand_as(parts.s)
    share = seen.double().mean(dim=(1, 2), keepdim=True).clamp(min=1 / seen[0].numel())
    return spectral(given, parts, slope * parts.s, slope, derivative) / share


def _imputed(given: Tensor, seen: Tensor, shrinkage: float, tolerance: float, rounds: int, derivative: str) -> Tensor:
    """The matrices with missing entries from soft-impute. A matrix that has converged is not changed any more."""
    state, level, alive = given, None, torch.ones(len(given), 1, 1, dtype=torch.bool, device=given.device)
    for _ in range(rounds):
        parts = parts_of(state)
        level = largest(state, parts) / shrinkage if level is None else level  # of the first state alone
        f, slope = (parts.s - level).clamp(min=0), (parts.s > level).to(parts.s)
        new = torch.where(seen, state, spectral(state, parts, f, slope, derivative))
        with torch.no_grad():
            size = state.masked_fill(seen, 0).square().sum(dim=(1, 2), keepdim=True)
            moved = (new - state).square().sum(dim=(1, 2), keepdim=True)  # of the missing entries: the others stay
            done = (size > 0) & (moved.sqrt() < tolerance * size.sqrt())
        state = torch.where(alive, new, state)
        alive = alive & ~done
        if not bool(alive.any()):
            break
    return state


def augment(
    x: Tensor, generator: Generator, *, p: Sequence[float], masks: int, method: str, channels: str, keep: float,
    shrinkage: float, tolerance: float, rounds: int,
) -> Tensor:  # fmt: skip
    """Images for the training of its classifier: x (B,C,H,W) in [0,1] completed from random pixels.

    `p`: [low, high]. The share of an image is low + i (high - low) / `masks` with a random i in 1 ... masks
    (deviation 125: fresh masks in training). The other arguments are those of `completed`.
    """
    low, high = p
    grade = torch.randint(1, masks + 1, (len(x), 1, 1, 1), generator=generator) / masks
    like = matrices(x, channels)[:, :1]
    seen = torch.rand(like.shape, generator=generator) < low + grade * (high - low)
    with torch.no_grad():
        return completed(
            x, seen, method=method, channels=channels, keep=keep, shrinkage=shrinkage, tolerance=tolerance,
            rounds=rounds,
        )  # fmt: skip
