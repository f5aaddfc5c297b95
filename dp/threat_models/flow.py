"""Spatial transforms by a flow (Xiao et al. 2018, arXiv 1801.02612): every pixel is taken from somewhere near by."""

import torch
from torch import Tensor

tiny = 1e-10  # keeps the root smooth where neighbours move alike; StAdv's own value


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Pixel (i,j) of the result is x at (i,j) plus the flow, bilinear; beyond the edge lies the edge pixel.

    x (B,C,H,W); flow (B,2,H,W): to the right, then downwards, in halves of the image's side, as torch's grids count, so
    that .05 are .8 pixels at 32. Zero flow gives x itself, bit by bit. No value leaves the range of x.
    """
    h, w = x.shape[2:]
    column = torch.arange(w, device=x.device).view(1, 1, w) + flow[:, 0] * (w / 2)  # (B,H,W)
    row = torch.arange(h, device=x.device).view(1, h, 1) + flow[:, 1] * (h / 2)
    left, top = column.detach().floor(), row.detach().floor()
    across, down = (column - left).unsqueeze(1), (row - top).unsqueeze(1)  # (B,1,H,W) in [0,1)

    def at(i: Tensor, j: Tensor) -> Tensor:
        index = i.clamp(0, h - 1) * w + j.clamp(0, w - 1)  # (B,H,W)
        return x.flatten(2).gather(2, index.long().flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)).view(x.shape)

    upper = at(top, left) + across * (at(top, left + 1) - at(top, left))
    lower = at(top + 1, left) + across * (at(top + 1, left + 1) - at(top + 1, left))
    out = upper + down * (lower - upper)
    least, most = x.detach().amin(dim=(1, 2, 3), keepdim=True), x.detach().amax(dim=(1, 2, 3), keepdim=True)
    out = out + (out.clamp(least, most) - out).detach()  # rounding alone leaves the range, so the slope stays
    return torch.empty_like(x).copy_(out)  # in the memory format of x


def roughness(flow: Tensor) -> Tensor:
    """(B,): how differently neighbours move, |difference|_2 over pixels and their four neighbours (StAdv, eq. 4)."""
    total = flow.new_zeros(len(flow))
    for difference in (flow.diff(dim=2), flow.diff(dim=3)):
        total = total + 2 * (difference.square().sum(dim=1) + tiny).sqrt().flatten(1).sum(dim=1)
    return total
