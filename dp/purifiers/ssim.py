"""Structural similarity (Wang et al. 2004) of images, as a guide of purification uses it."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE, STD = 11, 1.5  # of the Gaussian window, in pixels
C_1, C_2 = 0.01**2, 0.03**2  # for images of range 1; the code of Wang et al. (2022) has them on images of range 2


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of each pair of images, (B,). `a`, `b`: (B,C,H,W), whatever their range.

    At the border the window reaches into zeros and is not normalized again, as in the code of Wang et al. (2022).
    """
    mean_a, mean_b = _blurred(a), _blurred(b)
    variances = _blurred(a * a) - mean_a**2 + _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C_1) / (mean_a**2 + mean_b**2 + C_1)
    return (luminance * (2 * covariance + C_2) / (variances + C_2)).mean(dim=(1, 2, 3))


def _blurred(x: Tensor) -> Tensor:
    """The Gaussian window's mean around every pixel, (B,C,H,W), along one axis after the other."""
    window, channels = _window(x.dtype, x.device), x.shape[1]
    x = F.conv2d(x, window.view(1, 1, 1, -1).expand(channels, 1, 1, -1), padding=(0, SIDE // 2), groups=channels)
    return F.conv2d(x, window.view(1, 1, -1, 1).expand(channels, 1, -1, 1), padding=(SIDE // 2, 0), groups=channels)


@functools.cache
def _window(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Its weights along an axis, (SIDE,)."""
    distance = torch.arange(SIDE, dtype=torch.float64) - SIDE // 2
    window = (-(distance**2) / (2 * STD**2)).exp()
    return (window / window.sum()).to(device, dtype)
