"""The attention mask: where the classifier looks, from its own activations (methods.md section 1.1 and items 1-12)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dp.rng import Streams

MAPS = ("softmax_max", "softmax", "minmax")
MASK_GRADS = ("constant", "soft", "straight_through")


def attention_maps(
    features: Sequence[Tensor], size: tuple[int, int], phi: str = "softmax_max", root: bool = True
) -> Tensor:
    """One map per tap, (B,M,H,W), from features (B,C_m,h_m,w_m): phi(Bilinear(G)) with G = (sum_c |A_c|^2)^(1/2) (Eqs.
    2-3).

    `phi`: `softmax` is Eq. 3, which sums to 1 over H x W, so that at most one pixel can exceed .5; `softmax_max`
    divides it by its own maximum; `minmax` is the official code's. Differs (item 2): the paper prints tau = .8 beside
    Eq. 3.
    `root`: False leaves the square root out, as the official code does (item 3).
    """
    if phi not in MAPS:
        raise ValueError(f"need phi among {', '.join(MAPS)}, got phi={phi!r}")
    maps = []
    for a in features:
        g = a.square().sum(dim=1, keepdim=True)  # (B,1,h,w)
        if root:
            g = torch.where(g > 0, g, 1.0).sqrt() * (g > 0)  # the root's slope at 0 is infinite
        maps.append(F.interpolate(g, size=size, mode="bilinear", align_corners=False))
    flat = torch.cat(maps, dim=1).flatten(2)  # (B,M,HW)
    top = flat.amax(dim=2, keepdim=True)
    if phi == "softmax":
        flat = flat.softmax(dim=2)
    elif phi == "softmax_max":
        flat = (flat - top).exp()  # softmax over its maximum; never over- or underflows at the top
    else:
        low = flat.amin(dim=2, keepdim=True)
        span = top - low
        constant = span <= 1e-5 * top  # but for the rounding of the resize: all zero, not NaN (item 12)
        flat = torch.where(constant, 0.0, (flat - low) / span.masked_fill(constant, 1.0))
    return flat.unflatten(2, size)


def threshold_mask(
    maps: Tensor, tau: float, inclusive: bool = False, grad: str = "constant", temperature: float = 0.05
) -> Tensor:
    """Union over taps of [map > tau] (Eq. 4), or >= with `inclusive` (item 4): (B,1,H,W), 1 = strong noise.

    `grad`, `temperature`: see `masked`.
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"need 0 <= tau <= 1, got tau={tau}")
    joint = maps.amax(dim=1, keepdim=True)
    return masked((joint >= tau) if inclusive else (joint > tau), joint - tau, grad, temperature)


def top_mask(maps: Tensor, share: float, grad: str = "constant", temperature: float = 0.05) -> Tensor:
    """The int(share * H * W) pixels with the highest maximum over taps (the official code on ImageNet, item 6):
    (B,1,H,W). `grad`, `temperature`: see `masked`; the threshold is the lowest chosen pixel's.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"need a share of pixels in [0, 1], got share={share}")
    joint = maps.amax(dim=1).flatten(1)  # (B,HW)
    count = int(share * joint.shape[1])
    chosen = joint.topk(count, dim=1)
    hard = torch.zeros_like(joint).scatter(1, chosen.indices, 1.0)
    lowest = chosen.values[:, -1:].detach() if count else joint.new_full((len(joint), 1), torch.inf)
    size = maps.shape[2:]
    return masked(hard.unflatten(1, size)[:, None], (joint - lowest).unflatten(1, size)[:, None], grad, temperature)


def masked(hard: Tensor, above: Tensor, grad: str, temperature: float) -> Tensor:
    """The mask that a purifier uses, (B,1,H,W), from the hard one and the map's height above its threshold.

    `grad` (item 10): `constant`, the method's own, whose derivative is zero wherever it exists; `soft`, the sigmoid of
    above / temperature in its place; `straight_through`, the hard mask with the sigmoid's derivative.
    """
    if grad not in MASK_GRADS or temperature <= 0:
        raise ValueError(f"need mask_grad among {', '.join(MASK_GRADS)}, temperature > 0, got {grad!r}, {temperature}")
    hard = hard.to(above.dtype)
    if grad == "constant":
        return hard.detach()
    soft = (above / temperature).sigmoid()
    return soft if grad == "soft" else hard.detach() + (soft - soft.detach())


def scattered(mask: Tensor, rng: Streams) -> Tensor:
    """As many pixels as `mask` (B,1,H,W) has, anywhere: a control for where the classifier looks. Constant."""
    order = rng.uniform_like(mask).flatten(1).argsort(dim=1).argsort(dim=1)
    return (order < mask.flatten(1).sum(dim=1, keepdim=True)).to(mask.dtype).view_as(mask).detach()
