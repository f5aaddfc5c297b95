"""NCSN++ and DDPM++ as score-SDE builds them (Song et al. 2021).

All modules stand in one flat list `all_modules` and run in the order of that list.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.nets.backward import Conv2d, activated, affine
from dp.nets.blocks import attend, double, halve, kernel, sinusoid, wide
from dp.precision import Wide, WideLinear

ACTIVATIONS = {
    "swish": F.silu,
    "relu": nn.ReLU(),
    "elu": F.elu,
    "lrelu": functools.partial(F.leaky_relu, negative_slope=0.2),
}


class NCSNpp(nn.Module):
    """(B,C,R,R) and labels (b,), b = B or 1 -> (B,C,R,R), R = image_size.

    Images are in [-1,1] if `centered`, else in [0,1]. Labels are 999 t as a float for `positional` embeddings, sigma
    itself for `fourier`. `attn_resolutions`: sides at which attention follows a block. `fir`: resampling with the
    symmetric `fir_kernel` in place of repetition and the 2x2 mean. `progressive` (none | output_skip) and
    `progressive_input` (none | input_skip | residual): what is added at every resolution.
    """

    def __init__(
        self,
        image_size: int,
        num_channels: int = 3,
        centered: bool = True,
        nf: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 8,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        resamp_with_conv: bool = True,
        conditional: bool = True,
        fir: bool = False,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
        skip_rescale: bool = True,
        resblock_type: str = "biggan",
        progressive: str = "none",
        progressive_input: str = "none",
        progressive_combine: str = "sum",
        embedding_type: str = "positional",
        nonlinearity: str = "swish",
        fourier_scale: float = 16.0,
        scale_by_sigma: bool = False,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        num_scales: int = 1000,
    ):
        for name, value, known in (
            ("resblock_type", resblock_type, ("biggan", "ddpm")),
            ("progressive", progressive, ("none", "output_skip")),
            ("progressive_input", progressive_input, ("none", "input_skip", "residual")),
            ("progressive_combine", progressive_combine, ("sum", "cat")),
            ("embedding_type", embedding_type, ("positional", "fourier")),
            ("nonlinearity", nonlinearity, tuple(ACTIVATIONS)),
        ):
            if value not in known:
                raise ValueError(f"need {name} one of {', '.join(known)}, got {value!r}")
        if fir and len(fir_kernel) % 2:
            raise ValueError(f"need an even number of taps, got fir_kernel={list(fir_kernel)}")
        super().__init__()
        self.sigmas: Tensor
        ladder = torch.linspace(math.log(sigma_max), math.log(sigma_min), num_scales, dtype=torch.float64)
        self.register_buffer("sigmas", ladder.exp())
        self.nf, self.levels, self.blocks, self.size = nf, len(ch_mult), num_res_blocks, image_size
        self.centered, self.conditional, self.embedding_type = centered, conditional, embedding_type
        self.scale_by_sigma, self.attn_resolutions = scale_by_sigma, tuple(attn_resolutions)
        self.progressive, self.progressive_input, self.combine = progressive, progressive_input, progressive_combine
        self.taps = tuple(fir_kernel) if fir else (1, 1)
        self.scale = math.sqrt(0.5) if skip_rescale else 1.0
        biggan = resblock_type == "biggan"
        act, emb = ACTIVATIONS[nonlinearity], 4 * nf
        self.act = act

        def block(c_in: int, c_out: int, way: str = "") -> nn.Module:
            return _Res(c_in, c_out, emb, dropout, self.scale, biggan, way, self.taps, act)

        def change(c: int, way: str) -> nn.Module:
            return block(c, c, way) if biggan else _Resample(c, c, way, resamp_with_conv, fir, self.taps)

        def attention(c: int, level: int) -> list[nn.Module]:
            return [_Attention(c, self.scale)] if image_size >> level in attn_resolutions else []

        parts: list[nn.Module] = [_Fourier(nf, fourier_scale)] if embedding_type == "fourier" else []
        if conditional:
            parts += [WideLinear(2 * nf if embedding_type == "fourier" else nf, emb), WideLinear(emb, emb)]
        parts.append(_conv(num_channels, nf))
        c, pyramid, skips = nf, num_channels, [nf]
        for level, mult in enumerate(ch_mult):
            for _ in range(num_res_blocks):
                parts += [block(c, nf * mult), *attention(nf * mult, level)]
                c = nf * mult
                skips.append(c)
            if level != self.levels - 1:
                parts.append(change(c, "down"))
                if progressive_input == "input_skip":
                    parts.append(_Combine(num_channels, c))
                    c *= 2 if progressive_combine == "cat" else 1
                elif progressive_input == "residual":
                    parts.append(_Resample(pyramid, c, "down", True, fir, self.taps))
                    pyramid = c
                skips.append(c)
        parts += [block(c, c), _Attention(c, self.scale), block(c, c)]
        for level in range(self.levels - 1, -1, -1):
            for _ in range(num_res_blocks + 1):
                parts.append(block(c + skips.pop(), nf * ch_mult[level]))
                c = nf * ch_mult[level]
            parts += attention(c, level)
            if progressive == "output_skip":
                parts += [_norm(c), _conv(c, num_channels)]
            if level:
                parts.append(change(c, "up"))
        if progressive != "output_skip":
            parts += [_norm(c), _conv(c, num_channels)]
        self.all_modules = nn.ModuleList(parts)

    def forward(self, x: Tensor, time_cond: Tensor) -> Tensor:
        parts = iter(self.all_modules)
        emb = self.embedding(parts, wide(time_cond, x))
        if not self.centered:
            x = 2 * x - 1
        pyramid, first = x, next(parts)
        skips = [first(x)]
        for level in range(self.levels):
            for _ in range(self.blocks):
                h = next(parts)(skips[-1], emb)
                if h.shape[-1] in self.attn_resolutions:
                    h = next(parts)(h)
                skips.append(h)
            if level != self.levels - 1:
                h = next(parts)(skips[-1], emb)
                if self.progressive_input == "input_skip":
                    pyramid = _resampled(pyramid, "down", self.taps)
                    add = next(parts)(pyramid)
                    h = torch.cat([add, h], dim=1) if self.combine == "cat" else add + h
                elif self.progressive_input == "residual":
                    h = pyramid = (next(parts)(pyramid, emb) + h) * self.scale
                skips.append(h)
        h = skips[-1]
        for inputs in ((emb,), (), (emb,)):  # block, attention, block
            h = next(parts)(h, *inputs)
        out = None
        for level in range(self.levels - 1, -1, -1):
            for _ in range(self.blocks + 1):
                h = next(parts)(torch.cat([h, skips.pop()], dim=1), emb)
            if h.shape[-1] in self.attn_resolutions:
                h = next(parts)(h)
            if self.progressive == "output_skip":
                head = activated(next(parts), self.act, h)
                head = next(parts)(head)
                out = head if out is None else _resampled(out, "up", self.taps) + head
            if level:
                h = next(parts)(h, emb)
        if out is None:
            h = activated(next(parts), self.act, h)
            out = next(parts)(h)
        return out / self.levels_of(time_cond).to(out.dtype)[:, None, None, None] if self.scale_by_sigma else out

    def embedding(self, parts, labels: Tensor) -> Tensor | None:
        """The embedding (b,4 nf) of the labels, or None for a network that is not conditional on the noise level."""
        if self.embedding_type == "fourier":
            emb = next(parts)(labels.log())
        else:
            emb = torch.cat(sinusoid(labels, self.nf, endpoint=True), dim=1)
        if not self.conditional:
            return None
        emb = next(parts)(emb)
        return next(parts)(self.act(emb))

    def levels_of(self, labels: Tensor) -> Tensor:
        """The sigma by which the output is divided: the label itself, or the one at the label's index."""
        return labels if self.embedding_type == "fourier" else self.sigmas[labels.long()]


class _Fourier(Wide):
    """Fourier features, sin then cos, of frozen random frequencies."""

    def __init__(self, channels: int, scale: float):
        super().__init__()
        self.W = nn.Parameter(scale * torch.randn(channels), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        angle = x[:, None] * self.W * (2 * math.pi)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class _Res(nn.Module):
    """Norm-SiLU-conv twice, the embedding added between them, a skip, the sum times `scale`.

    `biggan`: may change the resolution (`way`: up | down), and then its skip is always a convolution; otherwise a
    change of width goes through a pixel-wise layer.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        emb: int,
        dropout: float,
        scale: float,
        biggan: bool,
        way: str,
        taps: Sequence[float],
        act: Callable[[Tensor], Tensor],
    ):
        super().__init__()
        self.GroupNorm_0 = _norm(c_in)
        self.Conv_0 = _conv(c_in, c_out)
        self.Dense_0 = WideLinear(emb, c_out)
        self.GroupNorm_1 = _norm(c_out)
        self.Dropout_0 = nn.Dropout(dropout)
        self.Conv_1 = _conv(c_out, c_out)
        if biggan and (c_in != c_out or way):
            self.Conv_2 = Conv2d(c_in, c_out, 1)
        elif c_in != c_out:
            self.NIN_0 = _NIN(c_in, c_out)
        self.scale, self.way, self.taps, self.act = scale, way, taps, act
        self.skip = "Conv_2" if hasattr(self, "Conv_2") else "NIN_0" if hasattr(self, "NIN_0") else ""

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        h = activated(self.GroupNorm_0, self.act, x)
        if self.way:
            h, x = (_resampled(a, self.way, self.taps) for a in (h, x))
        h = self.Conv_0(h)
        if emb is not None:
            h = h + self.Dense_0(self.act(emb))[:, :, None, None].to(h.dtype)
        h = self.Conv_1(self.Dropout_0(activated(self.GroupNorm_1, self.act, h)))
        return (h + (self.get_submodule(self.skip)(x) if self.skip else x)) * self.scale


class _Attention(nn.Module):
    """One head over all pixels, added to its input, the sum times `scale`; NIN_0 ... 2 make q, k, v."""

    def __init__(self, channels: int, scale: float):
        super().__init__()
        self.GroupNorm_0 = _norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (_NIN(channels, channels) for _ in range(4))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        q, k, v = (layer(h).flatten(2)[:, None] for layer in (self.NIN_0, self.NIN_1, self.NIN_2))  # (B,1,C,pixels)
        return (x + self.NIN_3(attend(q, k, v).reshape(x.shape))) * self.scale


class _NIN(nn.Module):
    """A linear layer of every pixel's channels; W is (in, out)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.W = nn.Parameter(torch.empty(c_in, c_out))
        self.b = nn.Parameter(torch.zeros(c_out))
        nn.init.xavier_uniform_(self.W, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return affine(F.conv2d, x, self.W.t()[:, :, None, None], self.b)


class _Combine(nn.Module):
    """A 1x1 convolution from the image at this resolution to the width of the features."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.Conv_0 = Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv_0(x)


class _Resample(nn.Module):
    """Half or twice the side with a 3x3 convolution (named Conv2d_0 with `fir`, Conv_0 without) or none."""

    def __init__(self, c_in: int, c_out: int, way: str, learned: bool, fir: bool, taps: Sequence[float]):
        if learned and fir and way == "up":
            raise ValueError("need resamp_with_conv=false or fir=false for resblock_type=ddpm, got both true")
        super().__init__()
        if learned:
            self.add_module("Conv2d_0" if fir else "Conv_0", Conv2d(c_in, c_out, 3))
        self.way, self.learned, self.fir, self.taps = way, learned, fir, taps

    def forward(self, x: Tensor, _emb: Tensor | None = None) -> Tensor:
        if not self.learned:
            return _resampled(x, self.way, self.taps)
        conv = self.get_submodule("Conv2d_0" if self.fir else "Conv_0")
        w, b = conv.weight, conv.bias
        assert isinstance(w, Tensor)
        assert isinstance(b, Tensor)
        if self.way == "up":
            return affine(F.conv2d, _resampled(x, "up", self.taps), w, b, padding=1)
        if not self.fir:
            return affine(F.conv2d, F.pad(x, (0, 1, 0, 1)), w, b, stride=2)
        f = kernel(self.taps, x).expand(x.shape[1], 1, -1, -1)  # the filter first, then every other pixel of the conv
        x = affine(F.conv2d, x, f, groups=x.shape[1], padding=len(self.taps) // 2)
        return affine(F.conv2d, x, w, b, stride=2)


def _resampled(x: Tensor, way: str, taps: Sequence[float]) -> Tensor:
    """Resample by 2: repetition or the 2x2 mean for taps (1, 1), else a separable filter of an even number of taps."""
    if tuple(taps) == (1, 1):
        return F.interpolate(x, scale_factor=2, mode="nearest") if way == "up" else affine(F.avg_pool2d, x, 2)
    return (double if way == "up" else halve)(x, kernel(taps, x), len(taps) // 2 - 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def _conv(c_in: int, c_out: int) -> Conv2d:
    return Conv2d(c_in, c_out, 3, padding=1)
