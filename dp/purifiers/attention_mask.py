"""The attention mask of arXiv 2503.01407: where the classifier looks, read from its own activations.

Deviations 1 to 14 list where the paper and its released code differ about it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dp.diffusion.denoisers import Denoiser
from dp.rng import Streams

MAPS = ("softmax_max", "softmax", "minmax")
MASK_GRADS = ("constant", "soft", "straight_through")


def attention_maps(
    features: Sequence[Tensor], size: tuple[int, int], phi: str = "softmax_max", root: bool = True
) -> Tensor:
    """One map per tap: phi(Bilinear(G)) with G = (sum_c |A_c|^2)^(1/2) (Eqs. 2 and 3).

    `features`: one (B,C_m,h_m,w_m) per tap. Returns (B,M,H,W), with (H,W) = `size`.
    `phi`: `softmax` is Eq. 3. It sums to 1 over H x W, so that at most one pixel can exceed 0.5. `softmax_max` divides
    it by its own maximum. `minmax` is what the released code does. Differs (deviation 2: normalization of the map): the
    paper prints tau = 0.8 beside Eq. 3.
    `root`: False leaves the square root out, as the released code does (deviation 3: root of the map).
    Raises ValueError for another `phi`.
    """
    if phi not in MAPS:
        raise ValueError(f"need phi among {', '.join(MAPS)}, got phi={phi!r}")
    maps = []
    for a in features:
        g = a.square().sum(dim=1, keepdim=True)  # (B,1,h,w)
        if root:
            g = torch.where(g > 0, g, 1.0).sqrt() * (g > 0)  # the root has an infinite slope at 0
        maps.append(F.interpolate(g, size=size, mode="bilinear", align_corners=False))
    flat = torch.cat(maps, dim=1).flatten(2)  # (B,M,HW)
    top = flat.amax(dim=2, keepdim=True)
    if phi == "softmax":
        flat = flat.softmax(dim=2)
    elif phi == "softmax_max":
        flat = (flat - top).exp()  # softmax over its maximum, safe in floating point
    else:
        low = flat.amin(dim=2, keepdim=True)
        span = top - low
        constant = span <= 1e-5 * top  # up to rounding; zero, not NaN (deviation 12: constant maps)
        flat = torch.where(constant, 0.0, (flat - low) / span.masked_fill(constant, 1.0))
    return flat.unflatten(2, size)


def chosen(features: Sequence[Tensor], taps: Sequence[int] | None) -> Sequence[Tensor]:
    """The features of some taps, by their positions from 1 on: the blocks E1 to E4 of the paper's Table 7. None: all.

    Raises ValueError unless `taps` are rising positions that exist.
    """
    if taps is None:
        return features
    if not taps or list(taps) != sorted({*taps} & {*range(1, len(features) + 1)}):
        raise ValueError(f"need taps as rising positions from 1 to {len(features)}, got taps={list(taps)}")
    return [features[position - 1] for position in taps]


def threshold_mask(
    maps: Tensor, tau: float, inclusive: bool = False, grad: str = "constant", temperature: float = 0.05
) -> Tensor:
    """The union over taps of [map > tau] (Eq. 4), (B,1,H,W), where 1 means strong noise.

    `maps`: (B,M,H,W). `tau`: in [0,1], else ValueError. `inclusive`: >= in place of >, as the released code does
    (deviation 4: strict or inclusive threshold). `grad`, `temperature`: see `masked`.
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"need 0 <= tau <= 1, got tau={tau}")
    joint = maps.amax(dim=1, keepdim=True)
    return masked((joint >= tau) if inclusive else (joint > tau), joint - tau, grad, temperature)


def top_mask(maps: Tensor, share: float, grad: str = "constant", temperature: float = 0.05) -> Tensor:
    """The int(share * H * W) pixels with the highest maximum over taps, (B,1,H,W), where 1 means strong noise.

    The released code does so on ImageNet (deviation 6: the mask on ImageNet). `maps`: (B,M,H,W). `share`: in [0,1],
    else ValueError. `grad`, `temperature`: see `masked`; the threshold is the map's value at the lowest chosen pixel.
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
    """The mask that a purifier uses, (B,1,H,W).

    `hard`: the thresholded mask (B,1,H,W). `above`: the map minus its threshold, same shape.
    `grad` (deviation 10: derivative of the mask): `constant` is the method's own mask, whose derivative is 0 wherever
    it exists. `soft` puts the sigmoid of above / temperature in its place. `straight_through` is the hard mask with the
    derivative of that sigmoid. Raises ValueError for another `grad` and for `temperature` <= 0.
    """
    if grad not in MASK_GRADS or temperature <= 0:
        raise ValueError(f"need mask_grad among {', '.join(MASK_GRADS)}, temperature > 0, got {grad!r}, {temperature}")
    hard = hard.to(above.dtype)
    if grad == "constant":
        return hard.detach()
    soft = (above / temperature).sigmoid()
    return soft if grad == "soft" else hard.detach() + (soft - soft.detach())


def scattered(mask: Tensor, rng: Streams) -> Tensor:
    """As many pixels as `mask` (B,1,H,W) has, at random places: a control for where the classifier looks.

    It has no gradient.
    """
    order = rng.uniform_like(mask).flatten(1).argsort(dim=1).argsort(dim=1)
    return (order < mask.flatten(1).sum(dim=1, keepdim=True)).to(mask.dtype).view_as(mask).detach()


def noise_facts(mask: Tensor, denoiser: Denoiser, t_l: float, t_s: float) -> dict[str, float]:
    """The share of pixels, in percent, that a mask (B,1,H,W) gives the strong noise of t_l, and both noise levels."""
    return {
        "strong noise on % of the pixels": 100 * float(mask.mean()),
        "t_l": t_l,
        "sigma at t_l": denoiser.sigma(t_l),
        "t_s": t_s,
        "sigma at t_s": denoiser.sigma(t_s),
    }
