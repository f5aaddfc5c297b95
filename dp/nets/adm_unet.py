"""The ADM U-Net (Dhariwal and Nichol 2021) in the layouts of the guided-diffusion and consistency-model checkpoints."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.nets.backward import Conv1d, Conv2d, activated, affine
from dp.nets.blocks import ClassConditional, attend, sinusoid, wide
from dp.precision import WideLinear


class UNetModel(ClassConditional):
    """(B,in_channels,H,W) and labels (b,), b = B or 1 -> (B,out_channels,H,W).

    H and W must be multiples of 2^(levels - 1).
    `attention_resolutions`: factors of downsampling at which attention follows a block. `y` (B,) int64: the class, for
    networks with `num_classes`; without it no class term is added. `consistency`: the layout of the consistency
    models, whose attention has 4-D kernels and always the order (3, head, d).
    """

    def __init__(
        self,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        in_channels: int = 3,
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        num_classes: int | None = None,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        consistency: bool = False,
    ):
        super().__init__()
        self.classes = num_classes or 0
        self.model_channels = model_channels
        emb = 4 * model_channels
        self.time_embed = nn.Sequential(WideLinear(model_channels, emb), nn.SiLU(), WideLinear(emb, emb))
        self.label_emb = None if num_classes is None else nn.Embedding(num_classes, emb)
        widths = [int(mult * model_channels) for mult in channel_mult]
        top = len(widths) - 1

        def block(c_in: int, c_out: int, resample: str = "") -> nn.Module:
            return _Res(c_in, c_out, emb, dropout, use_scale_shift_norm, resample)

        def attention(c: int, heads: int) -> nn.Module:
            heads = heads if num_head_channels == -1 else c // num_head_channels
            return _Attention(c, heads, new_order=use_new_attention_order or consistency, square=consistency)

        def change(c: int, way: str) -> nn.Module:
            return block(c, c, way) if resblock_updown else (_Down if way == "down" else _Up)(c, conv_resample)

        c, factor = widths[0], 1
        skips = [c]
        self.input_blocks = nn.ModuleList([_Steps([Conv2d(in_channels, c, 3, padding=1)])])
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                parts = [block(c, width)]
                c = width
                if factor in attention_resolutions:
                    parts.append(attention(c, num_heads))
                self.input_blocks.append(_Steps(parts))
                skips.append(c)
            if level != top:
                self.input_blocks.append(_Steps([change(c, "down")]))
                skips.append(c)
                factor *= 2
        self.middle_block = _Steps([block(c, c), attention(c, num_heads), block(c, c)])
        self.output_blocks = nn.ModuleList()
        for level, i in itertools.product(range(top, -1, -1), range(num_res_blocks + 1)):
            parts = [block(c + skips.pop(), widths[level])]
            c = widths[level]
            if factor in attention_resolutions:
                parts.append(attention(c, num_heads if num_heads_upsample == -1 else num_heads_upsample))
            if level and i == num_res_blocks:
                parts.append(change(c, "up"))
                factor //= 2
            self.output_blocks.append(_Steps(parts))
        self.out = nn.Sequential(_norm(c), nn.SiLU(), Conv2d(c, out_channels, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        sin, cos = sinusoid(wide(timesteps, x), self.model_channels, endpoint=False)
        emb = self.time_embed(torch.cat([cos, sin], dim=1))
        if self.label_emb is not None and y is not None:
            emb = emb + self.label_emb(y)
        skips = []
        for part in self.input_blocks:
            x = part(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for part in self.output_blocks:
            x = part(torch.cat([x, skips.pop()], dim=1), emb)
        return self.out[2](activated(self.out[0], self.out[1], x))


class _Steps(nn.ModuleList):
    """A chain of modules, of which the residual blocks also get the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for part in self:
            x = part(x, emb) if isinstance(part, _Res) else part(x)
        return x


class _Res(nn.Module):
    """Norm-SiLU-conv twice; the embedding scales and shifts the second norm, or is added before it.

    `resample`: `up` (nearest) or `down` (2x2 mean) by 2, on both branches, before the first convolution.
    """

    def __init__(self, c_in: int, c_out: int, emb: int, dropout: float, scale_shift: bool, resample: str):
        super().__init__()
        self.in_layers = nn.Sequential(_norm(c_in), nn.SiLU(), Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), WideLinear(emb, 2 * c_out if scale_shift else c_out))
        self.out_layers = nn.Sequential(
            _norm(c_out), nn.SiLU(), nn.Dropout(dropout), _zero(Conv2d(c_out, c_out, 3, padding=1))
        )
        self.skip_connection = nn.Identity() if c_in == c_out else Conv2d(c_in, c_out, 1)
        self.scale_shift, self.resample = scale_shift, resample

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = activated(self.in_layers[0], self.in_layers[1], x)
        if self.resample:
            h, x = (_resampled(a, self.resample) for a in (h, x))
        h = self.in_layers[2](h)
        e = self.emb_layers(emb)[:, :, None, None].to(h.dtype)  # (b,c,1,1), b = B or 1
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = activated(self.out_layers[0], self.out_layers[1], h, scale, shift)
        else:
            h = activated(self.out_layers[0], self.out_layers[1], h + e)
        h = self.out_layers[2:](h)
        return self.skip_connection(x) + h


class _Attention(nn.Module):
    """Attention over pixels, added to its input. Channels of qkv: (head, 3, d), or (3, head, d) in the new order."""

    def __init__(self, channels: int, heads: int, new_order: bool, square: bool):
        super().__init__()
        conv = Conv2d if square else Conv1d  # 4-D or 3-D kernels in the file
        self.norm = _norm(channels)
        self.qkv = conv(channels, 3 * channels, 1)
        self.proj_out = _zero(conv(channels, channels, 1))
        self.heads, self.new_order, self.square = heads, new_order, square

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        qkv = self.qkv(h if self.square else h.flatten(2)).flatten(2)  # (B,3C,pixels)
        if self.new_order:
            q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)
        else:
            q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)
        a = attend(q, k, v).flatten(1, 2)  # (B,C,pixels)
        out = self.proj_out(a.reshape(x.shape) if self.square else a)
        return x + out.reshape(x.shape)


class _Down(nn.Module):
    """Half the side, by a convolution of stride 2 if `learned`, else by the 2x2 mean."""

    def __init__(self, channels: int, learned: bool):
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1) if learned else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class _Up(nn.Module):
    """Twice the side by repetition, followed by a convolution if `learned`."""

    def __init__(self, channels: int, learned: bool):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_resampled(x, "up"))


def _resampled(x: Tensor, way: str) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest") if way == "up" else affine(F.avg_pool2d, x, 2)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def _zero(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
