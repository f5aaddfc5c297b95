"""Functions of a matrix's singular values, U diag(f) V^T, with a derivative that is finite where these are equal."""

from typing import NamedTuple

import torch
from torch import Tensor

TINY = 1e-10  # of two singular values, over the largest one: below it they count as equal
DERIVATIVES = ("exact", "projection")


class Parts(NamedTuple):
    """The singular value decomposition of matrices (B,n,m) with k = min(n, m), without a graph."""

    u: Tensor  # (B,n,k)
    s: Tensor  # (B,k), falling
    vh: Tensor  # (B,k,m)


def parts_of(matrix: Tensor) -> Parts:
    """The decomposition of matrices (B,n,m)."""
    return Parts(*torch.linalg.svd(matrix.detach(), full_matrices=False))


def largest(matrix: Tensor, parts: Parts) -> Tensor:
    """The largest singular value (B,1), with its derivative u^T dM v."""
    first = (parts.u[:, :, :1].mT @ _change(matrix) @ parts.vh[:, :1].mT).flatten(1)  # (B,1), zero
    return parts.s[:, :1] + first


def spectral(matrix: Tensor, parts: Parts, f: Tensor, slope: Tensor, derivative: str = "exact") -> Tensor:
    """U diag(f) V^T (B,n,m) with its derivative in the matrices (B,n,m), which the parts belong to.

    `f` (B,k): the new singular values, a function of the old ones with f(0) = 0. `slope` (B,k): its derivative there.
    `derivative`: `exact`, or `projection`, dM projected on both sides to the singular vectors whose f is not zero,
    which takes these vectors as constant. The exact one is that of Lewis and Sendov 2005 (Math. Programming, "Nonsmooth
    analysis of singular values"): in the basis of the singular vectors, each entry of the symmetric and of the skew
    part of dM is multiplied by a quotient of differences of f. All is finite. Where two equal singular values have
    different slopes, as at the cut of a truncation, there is no derivative, and the quotient is the mean slope. Second
    derivatives are not those of the function. Raises ValueError for another `derivative`.
    """
    if derivative not in DERIVATIVES:
        raise ValueError(f"need derivative among {', '.join(DERIVATIVES)}, got derivative={derivative!r}")
    value, change, (u, _, vh) = parts.u @ (f.unsqueeze(2) * parts.vh), _change(matrix), parts
    inner = u.mT @ change @ vh.mT  # (B,k,k)
    if derivative == "projection":
        kept = (f.detach() != 0).to(inner).unsqueeze(2)  # (B,k,1)
        return value + u @ (kept * inner * kept.mT) @ vh
    differences, sums, ratio = _quotients(parts.s, f.detach(), slope)
    core = differences * (inner + inner.mT) / 2 + sums * (inner - inner.mT) / 2
    right = u.mT @ change - inner @ vh  # (B,k,m), of rows outside the row space
    left = change @ vh.mT - u @ inner  # (B,n,k), of columns outside the column space
    return value + u @ (core @ vh + ratio * right) + left @ (ratio * vh)


def _change(matrix: Tensor) -> Tensor:
    """Zero, with the derivative of the matrix."""
    return matrix - matrix.detach()


def _quotients(s: Tensor, f: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(f_i - f_j) / (s_i - s_j) and (f_i + f_j) / (s_i + s_j), both (B,k,k), and f_i / s_i (B,k,1)."""
    a, b, mean = s.unsqueeze(2), s.unsqueeze(1), (slope.unsqueeze(2) + slope.unsqueeze(1)) / 2
    tiny = TINY * s[:, :1, None]
    differences = _quotient(f.unsqueeze(2) - f.unsqueeze(1), a - b, mean, tiny)
    sums = _quotient(f.unsqueeze(2) + f.unsqueeze(1), a + b, mean, tiny)
    return differences, sums, _quotient(f.unsqueeze(2), a, slope.unsqueeze(2), tiny)


def _quotient(above: Tensor, below: Tensor, limit: Tensor, tiny: Tensor) -> Tensor:
    """above / below, or the limit where `below` is tiny."""
    safe = below.abs() > tiny
    return torch.where(safe, above / torch.where(safe, below, 1.0), limit)
