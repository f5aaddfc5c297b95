"""Adam (Kingma and Ba 2015) inside a purifier: its steps are plain functions of tensors, with exact gradients."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BETA_1, BETA_2, TINY = 0.9, 0.999, 1e-8  # the paper's defaults
ROOT = 1e-20  # under the root, so that a gradient of zero has a derivative; far below what float32 can tell


def adam_step(z: Tensor, g: Tensor, m: Tensor, v: Tensor, count: int, lr: float) -> tuple[Tensor, Tensor, Tensor]:
    """One step of Adam on z given its gradient g: the new z and the new moments m and v, all of one shape.

    `count`: the number of this step, from 1. m and v are zero before the first.
    """
    m = BETA_1 * m + (1 - BETA_1) * g
    v = BETA_2 * v + (1 - BETA_2) * g.square()
    root = (v / (1 - BETA_2**count) + ROOT).sqrt()
    return z - lr * (m / (1 - BETA_1**count)) / (root + TINY), m, v


def inner_gradient(
    objective: Callable[..., Sequence[Tensor]], *inputs: Tensor
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The gradients, in each of `inputs`, of the sum of a purifier's own objective; and what else it returns.

    `objective(*inputs)` returns its values, one for each image, so that no image's gradient depends on another image,
    and any further tensors. Where the inputs have a graph, the gradients have one, too, so that they can be
    differentiated. Without autograd it works as well: the values have the same bits, and no graph.
    """
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    with torch.enable_grad():
        leaves = [z if keep and z.requires_grad else z.detach().requires_grad_() for z in inputs]
        values, *rest = objective(*leaves)
        # Always with a graph: without one, autograd takes other kernels, which round otherwise.
        gradients = torch.autograd.grad(values.sum(), leaves, create_graph=True)
    return (gradients, rest) if keep else (tuple(g.detach() for g in gradients), [one.detach() for one in rest])
