"""What the processes of one training share, so that together they compute what one process would."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> tuple[int, int]:
    """(rank, number of processes) of a distributed training, (0, 1) without one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return _Sum.forward(ctx, grads[0])


class SharedNorm(nn.BatchNorm2d):
    """Batch normalization with mean and variance of the global batch, over all processes."""

    def forward(self, input: Tensor) -> Tensor:
        _, size = world()
        if not self.training or size == 1:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        x = input.float()  # (B,C,H,W)
        mean = _Sum.apply(x.mean((0, 2, 3))) / size  # (C,)
        off = x - mean[:, None, None]
        var = _Sum.apply((off**2).mean((0, 2, 3))) / size
        with torch.no_grad():
            n = size * x.numel() / len(mean)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (n / (n - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        gain = self.weight * (var + self.eps).rsqrt()
        return (off * gain[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def average_gradients(net: nn.Module) -> None:
    """Replace every gradient by its mean over all processes, in one message. One process changes nothing."""
    _, size = world()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    if size == 1 or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / size).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def share_norms(net: nn.Module) -> None:
    """Turn every BatchNorm2d of the network into a `SharedNorm`, with the same names and tensors."""
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedNorm
