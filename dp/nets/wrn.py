"""Pre-activation wide residual network (Zagoruyko and Komodakis 2016), tensor names of RobustBench's `Standard`."""

import torch.nn.functional as F
from torch import Tensor, nn

from dp.nets.backward import Conv2d, activated


class _Unit(nn.Module):
    """BN-ReLU-conv twice plus a skip.

    Where width or stride change, the skip goes through the first BN-ReLU and a 1x1 convolution.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu2 = nn.ReLU(inplace=True)
        self.dropout = dropout
        self.conv2 = Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.convShortcut = None if c_in == c_out else Conv2d(c_in, c_out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = activated(self.bn1, self.relu1, x)
        skip = x if self.convShortcut is None else self.convShortcut(h)
        h = activated(self.bn2, self.relu2, self.conv1(h))
        return skip + self.conv2(F.dropout(h, self.dropout, self.training))


class _Block(nn.Module):
    """A chain of units under the name `layer`; the first unit has the stride."""

    def __init__(self, units: int, c_in: int, c_out: int, stride: int, dropout: float):
        super().__init__()
        widths = [c_in] + [c_out] * (units - 1)
        self.layer = nn.Sequential(*(_Unit(c, c_out, stride if i == 0 else 1, dropout) for i, c in enumerate(widths)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """(B,channels,H,W), H and W multiples of 4 -> (B,classes) logits.

    `depth`: 6 n + 4 for n units in each of the three blocks, else ValueError. `dropout`: between the two convolutions
    of a unit, in training only.
    """

    def __init__(self, depth: int = 28, widen: int = 10, classes: int = 10, channels: int = 3, dropout: float = 0.0):
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"need depth = 6 n + 4 with n >= 1, got depth={depth}")
        super().__init__()
        n, w = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = Conv2d(channels, w[0], 3, padding=1, bias=False)
        self.block1 = _Block(n, w[0], w[1], 1, dropout)
        self.block2 = _Block(n, w[1], w[2], 2, dropout)
        self.block3 = _Block(n, w[2], w[3], 2, dropout)
        self.bn1 = nn.BatchNorm2d(w[3])
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(w[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block3(self.block2(self.block1(self.conv1(x))))
        h = activated(self.bn1, self.relu, h)
        return self.fc(F.adaptive_avg_pool2d(h, 1).flatten(1))
