"""Wide residual network in DeepMind's layout (Gowal et al. 2020), tensor names of RobustBench's `DMWideResNet`."""

import torch.nn.functional as F
from torch import Tensor, nn

from dp.nets.backward import Conv2d, activated


class DMWideResNet(nn.Module):
    """(B,channels,H,W), H and W multiples of 4, already normalized -> (B,classes) logits.

    `depth`: 6 n + 4 with n >= 1. `activation`: silu (Swish) or relu. Raises ValueError for other values.
    """

    def __init__(
        self, depth: int = 28, width: int = 10, classes: int = 10, channels: int = 3, activation: str = "silu"
    ):
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"need depth = 6 n + 4 with n >= 1, got depth={depth}")
        if activation not in ("silu", "relu"):
            raise ValueError(f"need activation silu or relu, got {activation!r}")
        super().__init__()
        n, w = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        act = nn.SiLU if activation == "silu" else nn.ReLU
        self.init_conv = Conv2d(channels, w[0], 3, padding=1, bias=False)
        self.layer = nn.Sequential(*(_Group(n, w[i], w[i + 1], 1 if i == 0 else 2, act) for i in range(3)))
        self.batchnorm = nn.BatchNorm2d(w[3])
        self.relu = act()
        self.logits = nn.Linear(w[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        h = activated(self.batchnorm, self.relu, self.layer(self.init_conv(x)))
        return self.logits(F.adaptive_avg_pool2d(h, 1).flatten(1))


class _Group(nn.Module):
    """A chain of units under the name `block`; the first unit has the stride."""

    def __init__(self, units: int, c_in: int, c_out: int, stride: int, act: type[nn.Module]):
        super().__init__()
        widths = [c_in] + [c_out] * (units - 1)
        self.block = nn.Sequential(*(_Unit(c, c_out, stride if i == 0 else 1, act) for i, c in enumerate(widths)))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Unit(nn.Module):
    """Norm-activation-conv twice plus a skip; a strided convolution is padded to the right and below only."""

    def __init__(self, c_in: int, c_out: int, stride: int, act: type[nn.Module]):
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(c_in)
        self.relu_0 = act()
        self.conv_0 = Conv2d(c_in, c_out, 3, stride=stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(c_out)
        self.relu_1 = act()
        self.conv_1 = Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.shortcut = None if c_in == c_out else Conv2d(c_in, c_out, 1, stride=stride, bias=False)
        self.pad = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = activated(self.batchnorm_0, self.relu_0, x)
        skip = x if self.shortcut is None else self.shortcut(h)
        h = activated(self.batchnorm_1, self.relu_1, self.conv_0(F.pad(h, self.pad)))
        return skip + self.conv_1(h)
