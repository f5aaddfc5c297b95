"""FLOPs and stored bytes of the networks of a defense for one image, counted on the meta device, where nothing is
computed.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dp.defense.defended import Defended
from dp.diffusion.denoisers import Denoiser
from dp.evaluation.work import Rates
from dp.rng import Streams
from dp.subset import Subset


class Size(NamedTuple):
    """One call of a network for one image: FLOPs of the forward pass, FLOPs of the forward and the backward pass to the
    input, and numbers that autograd keeps for it.
    """

    forward: float
    gradient: float
    kept: float


class Sizes(NamedTuple):
    """The networks of a defense: a call of the denoiser, or of the purifier's own network where it has no denoiser; a
    call of the classifier beside what it asks of a denoiser; the number of all weights.
    """

    denoiser: Size
    classifier: Size
    weights: int

    @property
    def rates(self) -> Rates:
        """The FLOPs of one network evaluation."""
        (forward, gradient, _), (answer, both, _) = self.denoiser, self.classifier
        return Rates(forward, answer, gradient - forward, both - answer, forward)


NOTHING = Size(0.0, 0.0, 0.0)


def sizes(model: Defended, one: Subset) -> Sizes:
    """The sizes of a defense's networks, for its first image. The denoiser may be on the meta device."""
    denoisers = [module for module in model.modules() if isinstance(module, Denoiser)]
    weights = sum(parameter.numel() for parameter in model.parameters())
    if denoisers:
        denoiser = copy.deepcopy(denoisers[0]).to("meta")
        side = denoiser.size or one.x.shape[-1]
        z = torch.zeros(1, one.x.shape[1], side, side, device="meta")
        network = _size(lambda z: denoiser(z, 1.0), denoiser, z)
    else:
        network = _of_own_network(model, one)
    if model.classifier_nfe:
        return Sizes(network, NOTHING, weights)
    classifier = copy.deepcopy(model.classifier).to("meta")
    return Sizes(network, _size(classifier, classifier, one.x.to("meta")), weights)


def _size(call: Callable[[Tensor], Tensor], network: nn.Module, x: Tensor) -> Size:
    """The size of call(x) for x (1,...) on the meta device."""
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        call(x)
    own = {parameter.untyped_storage()._cdata for parameter in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no two of them have one address

    def keep(saved: Tensor) -> Tensor:
        if saved.untyped_storage()._cdata not in own:
            kept[saved.untyped_storage()._cdata] = saved.detach()  # itself, it would hold the graph that holds it
        return saved

    leaf = x.detach().clone().requires_grad_()
    with (
        FlopCounterMode(display=False) as gradient,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved),
    ):
        call(leaf).sum().backward()
    numbers = sum(tensor.untyped_storage().nbytes() / tensor.element_size() for tensor in kept.values())
    return Size(forward.get_total_flops(), gradient.get_total_flops(), numbers)


def _of_own_network(model: Defended, one: Subset) -> Size:
    """The size of a call of the purifier's own network, on average over one purification, which is computed. Its
    backward pass counts as much, and what it keeps is not counted.
    """
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model.purify(one.x, Streams(one.ids, 0, "dry"))
    if not model.nfe:
        return NOTHING
    each = forward.get_total_flops() / model.nfe
    return Size(each, 2 * each, 0.0)
