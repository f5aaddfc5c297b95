"""The U-Net of DDPM (Ho et al. 2020), with the tensor names of Lee and Kim's SVHN model."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.nets.backward import Conv2d, activated, affine
from dp.nets.blocks import attend, sinusoid, wide
from dp.precision import WideLinear


class DDPMUNet(nn.Module):
    """(B,in_channels,R,R) and step indices (b,), b = B or 1 -> (B,out_ch,R,R), R = image_size.

    Every level's width, `ch` times its `ch_mult`, must be a multiple of 32.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int = 3,
        out_ch: int = 3,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        resamp_with_conv: bool = True,
    ):
        super().__init__()
        emb, widths, top = 4 * ch, [ch * mult for mult in ch_mult], len(ch_mult) - 1
        self.temb = _Time(ch)
        self.conv_in = Conv2d(in_channels, ch, 3, padding=1)
        c, skips, down, up = ch, [ch], [], []
        for level, width in enumerate(widths):
            stage = _Stage()
            for _ in range(num_res_blocks):
                stage.add(_Res(c, width, emb, dropout), image_size >> level in attn_resolutions, width)
                c = width
                skips.append(c)
            if level != top:
                stage.downsample = _Down(c, resamp_with_conv)
                skips.append(c)
            down.append(stage)
        self.mid = _Middle(c, emb, dropout)
        for level in range(top, -1, -1):
            stage = _Stage()
            for _ in range(num_res_blocks + 1):
                block = _Res(c + skips.pop(), widths[level], emb, dropout)
                stage.add(block, image_size >> level in attn_resolutions, widths[level])
                c = widths[level]
            if level:
                stage.upsample = _Up(c, resamp_with_conv)
            up.insert(0, stage)  # named by level; the last level runs first
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.norm_out = _norm(c)
        self.conv_out = Conv2d(c, out_ch, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self.temb(wide(t, x))
        x = self.conv_in(x)
        skips = [x]
        for stage in self.down:
            assert isinstance(stage, _Stage)
            for i in range(len(stage.block)):
                x = stage(i, x, emb)
                skips.append(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
                skips.append(x)
        x = self.mid(x, emb)
        for stage in reversed(self.up):
            assert isinstance(stage, _Stage)
            for i in range(len(stage.block)):
                x = stage(i, torch.cat([x, skips.pop()], dim=1), emb)
            if stage.upsample is not None:
                x = stage.upsample(x)
        return self.conv_out(activated(self.norm_out, F.silu, x))


class _Time(nn.Module):
    """sin then cos of the step index, and two layers."""

    def __init__(self, ch: int):
        super().__init__()
        self.ch = ch
        self.dense = nn.ModuleList([WideLinear(ch, 4 * ch), WideLinear(4 * ch, 4 * ch)])

    def forward(self, t: Tensor) -> Tensor:
        emb = torch.cat(sinusoid(t, self.ch, endpoint=True), dim=1)
        return self.dense[1](F.silu(self.dense[0](emb)))


class _Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, emb: int, dropout: float):
        super().__init__()
        self.block_1 = _Res(channels, channels, emb, dropout)
        self.attn_1 = _Attention(channels)
        self.block_2 = _Res(channels, channels, emb, dropout)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, emb)), emb)


class _Stage(nn.Module):
    """The blocks of one resolution, with attention after some, and the change to the next resolution."""

    def __init__(self):
        super().__init__()
        self.block, self.attn = nn.ModuleList(), nn.ModuleList()
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def add(self, block: nn.Module, attention: bool, channels: int) -> None:
        self.block.append(block)
        if attention:
            self.attn.append(_Attention(channels))

    def forward(self, i: int, x: Tensor, emb: Tensor) -> Tensor:
        x = self.block[i](x, emb)
        return self.attn[i](x) if len(self.attn) else x


class _Res(nn.Module):
    """Norm-SiLU-conv twice, the embedding added between them, a skip."""

    def __init__(self, c_in: int, c_out: int, emb: int, dropout: float):
        super().__init__()
        self.norm1 = _norm(c_in)
        self.conv1 = Conv2d(c_in, c_out, 3, padding=1)
        self.temb_proj = WideLinear(emb, c_out)
        self.norm2 = _norm(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = None if c_in == c_out else Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(activated(self.norm1, F.silu, x))
        h = h + self.temb_proj(F.silu(emb))[:, :, None, None].to(h.dtype)
        h = self.conv2(self.dropout(activated(self.norm2, F.silu, h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class _Attention(nn.Module):
    """One head over all pixels, added to its input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2)[:, None] for layer in (self.q, self.k, self.v))  # (B,1,C,pixels)
        return x + self.proj_out(attend(q, k, v).reshape(x.shape))


class _Down(nn.Module):
    """Half the side: a convolution of stride 2 padded to the right and below, or the 2x2 mean."""

    def __init__(self, channels: int, learned: bool):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        return affine(F.avg_pool2d, x, 2) if self.conv is None else self.conv(F.pad(x, (0, 1, 0, 1)))


class _Up(nn.Module):
    """Twice the side by repetition, followed by a convolution if `learned`."""

    def __init__(self, channels: int, learned: bool):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)
