"""Copies from the host to a GPU for which the host does not wait."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. A copy to a GPU is made of pinned memory, which the GPU reads while the host goes on;
    torch keeps that memory until then.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
