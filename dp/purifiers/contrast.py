"""The contrastive guide of Bai et al. 2024: two neighboring states of a chain should look alike to a small network that
is trained while the chain runs.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dp.adam import adam_step
from dp.classifiers import Classifier
from dp.diffusion.guided import inner_gradient
from dp.rng import Streams

ESTIMATORS = ("hard", "soft")
BLOCKS, MATRICES = 3, 3  # of the small network
AT_A_TIME = 64  # at least as many numbers as a processor takes at a time
LEAST = 1e-6  # of the similarities and of the probability whose logarithms are taken, as in the released code


class Contrast(NamedTuple):
    """The loss and the training of the small network: `temperature` and `beta` of the similarities, `tau_plus` in [0,1)
    of the correction for false negatives (Robinson et al. 2021), `lr` of Adam. `estimator` of the negatives: `hard`
    weights and corrects them, `soft` is their plain sum, for groups of one image only, as in the released code.
    """

    temperature: float
    tau_plus: float
    beta: float
    lr: float
    estimator: str = "hard"


def new_heads(weights: Sequence[Tensor]) -> list[Tensor]:
    """Small networks with these matrices (G,out,in), one for each of G groups of images: the matrices, and their two
    moments of Adam, which are zero.
    """
    zeros = [torch.zeros_like(w) for w in weights]
    return [*weights, *zeros, *zeros]


def draw_weights(logits: Tensor, rng: Streams) -> list[Tensor]:
    """Matrices of one network for each image, uniform in +- 1 / sqrt(inputs), torch's default, for logits (B,K)."""
    classes, weights = logits.shape[1], []
    for i in range(BLOCKS * MATRICES):
        last = i % MATRICES == MATRICES - 1
        outs, ins = (classes, 2 * classes) if last else (2 * classes, classes)
        like = logits.new_empty(len(logits), outs, ins)
        weights.append((2 * rng.uniform_like(like) - 1) / math.sqrt(ins))
    return weights


def pull(
    state: Tensor, previous: Tensor, classifier: Classifier, heads: Sequence[Tensor], contrast: Contrast, count: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The gradient (B,C,H,W) of the contrastive loss in the state, the state's logits (B,K), and the trained heads.

    `state`: the variance-preserving state (B,C,H,W), which the classifier is given as it is. `previous`: the logits
    (B,K) of the state before. `heads`: see `new_heads`. The batch consists of as many groups of equal size as there are
    small networks; the loss of a group compares its images with each other. The heads take step number `count` of Adam,
    from 1, with the gradient of the same loss.
    """
    parts = len(heads) // 3
    weights, m, v = heads[:parts], heads[parts : 2 * parts], heads[2 * parts :]
    groups = len(weights[0])

    def loss(state: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        logits = classifier(state)
        a, b = (head(one.unflatten(0, (groups, -1)), weights) for one in (previous, logits))
        return contrastive_loss(a, b, contrast), logits

    (gradient, *slopes), (logits,) = inner_gradient(loss, state, *weights)
    stepped = [adam_step(*one, count, contrast.lr) for one in zip(weights, slopes, m, v, strict=True)]
    return gradient, logits, [tensor for part in zip(*stepped, strict=True) for tensor in part]


def contrastive_loss(a: Tensor, b: Tensor, contrast: Contrast) -> Tensor:
    """The loss (G,) of features a and b (G,N,K) of N images each: InfoNCE with hard negatives, as in the released code.

    The positive term of an image has its similarities with all images of its group, not with itself alone.
    """
    size, both = a.shape[1], torch.cat([a, b], dim=1)  # (G,2N,K)
    unit = both / (both.square().sum(-1, keepdim=True) + 1e-16).sqrt()
    # Products are summed one by one and not by a matrix product, whose last bit depends on the batch.
    similar = _each(torch.exp, (unit[:, :, None] * unit[:, None]).sum(-1) / contrast.temperature)  # (G,2N,2N)
    positive = similar[:, :size, size:].repeat(1, 2, 1)  # (G,2N,N)
    negative = similar[:, *_negatives(size, similar.device)].clamp(min=LEAST)  # (G,2N,2N-2)
    if contrast.estimator == "soft":
        all_negative = negative.sum(-1)[:, None]  # (G,1,2): each row meets the negatives of both, as in the code
    else:
        all_negative = _hard(positive, negative, max(2 * size - 2, 2), contrast)
    return -_each(torch.log, (positive / (positive + all_negative)).clamp(min=LEAST)).mean(dim=(1, 2))


def _hard(positive: Tensor, negative: Tensor, number: int, contrast: Contrast) -> Tensor:
    """The sum (G,2N,N) of `number` negatives (G,2N,...), weighted by hardness and corrected for false ones by the
    positive (G,2N,N).
    """
    importance = _each(lambda one: one**contrast.beta, negative)
    weighted = (importance * negative).sum(-1) / importance.mean(-1)
    corrected = (weighted[..., None] - contrast.tau_plus * number * positive) / (1 - contrast.tau_plus)
    return corrected.clamp(min=number * math.exp(-1 / contrast.temperature))


@functools.cache
def _negatives(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column (2N,2N-2) of each row's negatives: all but the image itself and its partner. With one image, the
    first column.
    """
    rows = torch.arange(2 * size, device=device)[:, None]
    if size == 1:
        return rows, torch.zeros_like(rows)
    others = [[j for j in range(2 * size) if j % size != i % size] for i in range(2 * size)]
    return rows, torch.tensor(others).to(device)


def head(features: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Three residual blocks q + d3(silu(d1 q) * (d2 q)) of features (G,N,K)."""
    for d1, d2, d3 in zip(weights[::3], weights[1::3], weights[2::3], strict=True):
        gate = _each(F.silu, _times(features, d1))
        features = features + _times(gate * _times(features, d2), d3)
    return features


def _each(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), element by element of x (G,...), with the same last bit wherever a group stands in the batch.

    The processor rounds such functions otherwise in the last elements of a tensor than in the others, which it takes
    many at a time. So each group is padded to a multiple of them.
    """
    flat = x.flatten(1)
    padded = F.pad(flat, (0, -flat.shape[1] % AT_A_TIME), value=1.0)
    return function(padded)[:, : flat.shape[1]].view_as(x)


def _times(features: Tensor, weight: Tensor) -> Tensor:
    """Features (G,N,in) times a matrix (G,out,in): (G,N,out)."""
    return (features[:, :, None] * weight[:, None]).sum(-1)
