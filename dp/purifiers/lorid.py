"""LoRID (Zollicoffer et al. 2025, arXiv 2409.08255): a low-rank projection, then rounds of shallow diffusion.

No code is public, and the values of the published figures are unknown to us. This is our reading of the paper's
abstract (deviation 78: our reading of LoRID).
"""

import math

import torch
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.diffusion.rounds import Round, in_rounds
from dp.diffusion.sampling import OnStep, time_grid, to_01, to_pm1
from dp.rng import Streams

LEAST_GAP = 1e-12  # of two eigenvalues, over the largest one: below it the cut between them has no derivative


def purify(
    x: Tensor,
    denoiser: Denoiser,
    classifier: Classifier,
    rng: Streams,
    *,
    on_step: OnStep | None = None,
    t: float,
    steps: int,
    loops: int,
    rank: float,
    eta: float,
    clamp: str = "plain",
) -> Tensor:
    """Purify x (B,C,H,W) in [0,1] by a projection and `loops` rounds of diffusion. NFE = loops * steps.

    `t`, `steps`: every round adds noise up to time t and removes it in as many equal steps. `eta`: 1 for DDPM's
    ancestral steps, 0 for DDIM's. `rank`: share in (0,1] of the ranks along height and width that the projection keeps,
    see `low_rank`; 1 is no projection. `clamp`: the last step's clamp to [0,1], see `to_01`.
    `on_step(i, sigma, z, x0)` is called after every call of the denoiser.
    Raises ValueError for values outside these ranges.
    """
    if loops < 1:
        raise ValueError(f"need loops >= 1, got loops={loops}")
    sigmas = [*map(denoiser.sigma, time_grid(t, steps)[:-1]), 0.0]
    rounds = [Round(sigmas[0], sigmas)] * loops
    state = in_rounds(low_rank(to_pm1(x), rank), denoiser, rng, rounds, eta=eta, on_step=on_step)
    return to_01(state, clamp)


def low_rank(image: Tensor, rank: float) -> Tensor:
    """The Tucker approximation of each image (B,C,H,W) by its leading singular vectors along height and width.

    This is the truncated higher-order singular value decomposition (De Lathauwer et al. 2000): the image times the
    projector P = V V^T of each mode. Each mode keeps ceil(rank * size) vectors; channels are not reduced. It is
    computed in float64. Its derivative is exact where the kept and the dropped eigenvalues differ. Where two of them
    are equal, as for an image of a lower rank, there is none, and their part is left out. Raises ValueError unless
    0 < rank <= 1.
    """
    if not 0 < rank <= 1:
        raise ValueError(f"need 0 < rank <= 1, got rank={rank}")
    if rank == 1:
        return image
    wide = image.double()
    rows = _projector(wide.transpose(1, 2).flatten(2), math.ceil(rank * image.shape[2]))  # (B,H,H)
    columns = _projector(wide.movedim(3, 1).flatten(2), math.ceil(rank * image.shape[3]))  # (B,W,W)
    return torch.einsum("bij,bcjk,bkl->bcil", rows, wide, columns).to(image.dtype)


def _projector(unfolded: Tensor, rank: int) -> Tensor:
    """V V^T (B,n,n) of the first `rank` left singular vectors V of the matrices `unfolded` (B,n,m), in float64.

    The derivative of eigenvectors is not finite where two eigenvalues are equal. That of the projector is, unless the
    two lie on both sides of the cut: along dG of G = M M^T it couples the kept vectors V with the dropped ones U alone,
    dP = V X U^T + U X^T V^T with X_ij = (V^T dG U)_ij / (lambda_i - mu_j). So it is written out here, with the
    difference of G and its own value, which is zero, as dG. Second derivatives are not those of P.
    """
    gram = unfolded @ unfolded.mT
    values, vectors = torch.linalg.eigh(gram.detach())  # rising
    dropped, kept = values[:, :-rank], values[:, -rank:]
    u, v = vectors[:, :, :-rank], vectors[:, :, -rank:]
    gap = kept.unsqueeze(2) - dropped.unsqueeze(1)  # (B,rank,n-rank)
    cut = gap > LEAST_GAP * values[:, -1:, None]
    coupling = torch.where(cut, 1 / torch.where(cut, gap, 1.0), 0.0) * (v.mT @ (gram - gram.detach()) @ u)
    half = v @ coupling @ u.mT
    return v @ v.mT + half + half.mT
