"""How many bytes a defense stores for its backward pass."""

import weakref

import torch
from torch import Tensor

from dp.defense.defended import Defended
from dp.rng import Streams


def activation_bytes(model: Defended, x: Tensor, rng: Streams) -> int:
    """Bytes that autograd stores for one image of x (B,C,H,W) and one sample of the whole defense. Weights are not
    counted, neither are those of a purifier's own networks.
    """
    own = {p.data_ptr() for p in model.parameters()}
    tensors: list[tuple[weakref.ref, int, int]] = []

    def pack(saved: Tensor) -> Tensor:
        if saved.data_ptr() not in own:
            saved, storage = saved.detach(), saved.untyped_storage()  # itself, it would hold the graph that holds it
            tensors.append((weakref.ref(saved), storage.data_ptr(), storage.nbytes()))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        logits = model(x[:1].detach().requires_grad_(), rng.select([0]))
    assert len(logits) == 1
    return sum({at: size for alive, at, size in tensors if alive() is not None}.values())  # recomputed ones are gone
