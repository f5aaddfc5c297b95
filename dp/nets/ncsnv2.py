"""NCSNv2 (Song and Ermon 2020), the score network of ADP: a RefineNet with dilated convolutions.

The tensor names are those of the released code (ermongroup/ncsnv2, and its copy in jmyoon1/adp).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.nets.backward import Conv2d, activated, affine


class NCSNv2(nn.Module):
    """(B,channels,H,W) in [0,1], H and W even -> the score times the noise level, of the same shape.

    The network is not told the noise level. The original divides its output by sigma in training, and ADP removes this
    factor. `width`: channels of the first level. `high`, `low`, `levels`: noise levels of the training, a geometric
    sequence for images in [0,1], which the files hold as `sigmas`.
    """

    def __init__(self, channels: int = 3, width: int = 128, high: float = 50.0, low: float = 0.01, levels: int = 232):
        super().__init__()
        self.sigmas: Tensor
        self.register_buffer("sigmas", torch.linspace(math.log(high), math.log(low), levels).exp())
        self.begin_conv = Conv2d(channels, width, 3, padding=1)
        self.normalizer = _Norm(width)
        self.end_conv = Conv2d(width, channels, 3, padding=1)
        wide = 2 * width
        self.res1 = nn.ModuleList([_Residual(width, width), _Residual(width, width)])
        self.res2 = nn.ModuleList([_Pooled(width, wide), _Residual(wide, wide)])
        self.res3 = nn.ModuleList([_Dilated(wide, wide, 2), _Residual(wide, wide, 2)])
        self.res4 = nn.ModuleList([_Dilated(wide, wide, 4), _Residual(wide, wide, 4)])
        self.refine1 = _Refine([wide], wide)
        self.refine2 = _Refine([wide, wide], wide)
        self.refine3 = _Refine([wide, wide], width)
        self.refine4 = _Refine([width, width], width, blocks=3)

    def forward(self, x: Tensor) -> Tensor:
        h, skips = self.begin_conv(2 * x - 1), []
        for level in (self.res1, self.res2, self.res3, self.res4):
            for block in level:
                h = block(h)
            skips.append(h)
        h = self.refine1([skips[3]])
        for refine, skip in ((self.refine2, skips[2]), (self.refine3, skips[1]), (self.refine4, skips[0])):
            h = refine([skip, h])
        return self.end_conv(activated(self.normalizer, F.elu, h))


class _Norm(nn.Module):
    """Instance normalization; the channels' means, normalized over the channels, are added again."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(1 + 0.02 * torch.randn(channels))
        self.gamma = nn.Parameter(1 + 0.02 * torch.randn(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)  # (B,C,1,1)
        spread = means.var(dim=1, keepdim=True)
        means = (means - means.mean(dim=1, keepdim=True)) * (spread + 1e-5).rsqrt()
        alpha, gamma, beta = (p.view(1, -1, 1, 1) for p in (self.alpha, self.gamma, self.beta))
        return gamma * (F.instance_norm(x) + means * alpha) + beta


class _Residual(nn.Module):
    """Norm-ELU-convolution twice plus a skip, without a change of size or channels. `dilation`: of the convolutions."""

    def __init__(self, c_in: int, c_out: int, dilation: int = 1):
        super().__init__()
        between = self.between(c_in, c_out)
        self.normalize1 = _Norm(c_in)
        self.conv1 = Conv2d(c_in, between, 3, padding=dilation, dilation=dilation)
        self.normalize2 = _Norm(between)
        self.conv2: nn.Module = Conv2d(between, c_out, 3, padding=dilation, dilation=dilation)
        self.shortcut: nn.Module = nn.Identity()

    @staticmethod
    def between(c_in: int, c_out: int) -> int:
        return c_out

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(activated(self.normalize1, F.elu, x))
        return self.shortcut(x) + self.conv2(activated(self.normalize2, F.elu, h))


class _Dilated(_Residual):
    """A residual block at the start of a dilated level: the channels grow in its second convolution and in its skip."""

    def __init__(self, c_in: int, c_out: int, dilation: int):
        super().__init__(c_in, c_out, dilation)
        self.shortcut = Conv2d(c_in, c_out, 3, padding=dilation, dilation=dilation)

    @staticmethod
    def between(c_in: int, c_out: int) -> int:
        return c_in


class _Pooled(_Residual):
    """A residual block that halves the size by 2x2 means after its second convolution and after that of its skip."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_in, c_out)
        self.conv2 = _ConvMean(c_in, c_out, 3)
        self.shortcut = _ConvMean(c_in, c_out, 1)

    @staticmethod
    def between(c_in: int, c_out: int) -> int:
        return c_in


class _ConvMean(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int):
        super().__init__()
        self.conv = Conv2d(c_in, c_out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return affine(F.avg_pool2d, self.conv(x), 2)


class _Units(nn.Module):
    """`blocks` times ELU-convolution twice plus a skip."""

    def __init__(self, channels: int, blocks: int):
        super().__init__()
        self.names = [[f"{i + 1}_{j + 1}_conv" for j in range(2)] for i in range(blocks)]
        for name in (name for pair in self.names for name in pair):
            self.add_module(name, Conv2d(channels, channels, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        for first, second in self.names:
            h = self.get_submodule(first)(F.elu(x))
            x = x + self.get_submodule(second)(F.elu(h))
        return x


class _Sum(nn.Module):
    """A convolution of each input, resized to the first one's size, and their sum."""

    def __init__(self, widths: Sequence[int], channels: int):
        super().__init__()
        self.convs = nn.ModuleList(Conv2d(width, channels, 3, padding=1) for width in widths)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        size, total = inputs[0].shape[2:], torch.zeros(())
        for conv, h in zip(self.convs, inputs, strict=True):
            total = total.to(h) + F.interpolate(conv(h), size=size, mode="bilinear", align_corners=True)
        return total


class _Pool(nn.Module):
    """Two times a 5x5 maximum and a convolution, each added to the input (chained residual pooling)."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = path = F.elu(x)
        for conv in self.convs:
            path = conv(F.max_pool2d(path, 5, stride=1, padding=2))
            x = x + path
        return x


class _Refine(nn.Module):
    """Units of each input, their sum at the first one's size, pooling, units."""

    def __init__(self, widths: Sequence[int], channels: int, blocks: int = 1):
        super().__init__()
        self.adapt_convs = nn.ModuleList(_Units(width, 2) for width in widths)
        self.msf = _Sum(widths, channels) if len(widths) > 1 else None
        self.crp = _Pool(channels)
        self.output_convs = _Units(channels, blocks)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        adapted = [units(h) for units, h in zip(self.adapt_convs, inputs, strict=True)]
        h = adapted[0] if self.msf is None else self.msf(adapted)
        return self.output_convs(self.crp(h))
