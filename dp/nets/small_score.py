"""A small score network for images such as digits that is not told the noise level."""

from torch import Tensor, nn

from dp.nets.small_unet import SmallUNet


class SmallScore(nn.Module):
    """(B,channels,H,W) in [0,1], H and W multiples of 4 -> the score times the noise level, of the same shape.

    It is `SmallUNet` with a constant noise label: like NCSNv2 it finds out the level from the image alone.
    """

    def __init__(self, channels: int = 1, width: int = 32, wide: int = 48):
        super().__init__()
        self.unet = SmallUNet(channels, width, wide)

    def forward(self, x: Tensor) -> Tensor:
        return self.unet(2 * x - 1, x.new_zeros(1))
