"""The U-Nets of EDM (Karras et al. 2022), with the argument and tensor names of the public checkpoints.

`SongUNet` is DDPM++ and NCSN++ (Song et al. 2021). `DhariwalUNet` is ADM (Dhariwal and Nichol 2021).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.nets.backward import activated
from dp.nets.blocks import ClassConditional, one_hot, sinusoid
from dp.nets.edm_blocks import Block, Conv, linear, norm


class SongUNet(ClassConditional):
    """(B,in_channels,R,R) and noise labels (b,), b = B or 1 -> (B,out_channels,R,R), R = img_resolution.

    `class_labels` are (B,) int64, or (B,label_dim) one-hot. Without them or `augment_labels` (B,augment_dim) no term is
    added.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int = 3,
        out_channels: int = 3,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ):
        for value, known in (
            (embedding_type, ("positional", "fourier")),
            (encoder_type, ("standard", "skip", "residual")),
            (decoder_type, ("standard", "skip")),
        ):
            if value not in known:
                raise ValueError(f"need one of {', '.join(known)} for a type of SongUNet, got {value!r}")
        super().__init__()
        self.classes = label_dim
        emb, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        self.map_noise = _Fourier(noise) if embedding_type == "fourier" else _Positional(noise)
        self.map_label = linear(label_dim, noise) if label_dim else None
        self.map_augment = linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = linear(noise, emb)
        self.map_layer1 = linear(emb, emb)
        taps, top = resample_filter, len(channel_mult) - 1

        def block(c_in: int, c_out: int, attention: bool = False, up: bool = False, down: bool = False) -> Block:
            return Block(
                c_in,
                c_out,
                emb,
                up=up,
                down=down,
                heads=int(attention),
                dropout=dropout,
                skip_scale=math.sqrt(0.5),
                norm_eps=1e-6,
                taps=taps,
                project=True,
                zero=1e-5,
            )

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        c, aux, skips = model_channels, in_channels, [model_channels]
        for level, mult in enumerate(channel_mult):
            side = f"{img_resolution >> level}x{img_resolution >> level}"
            if level == 0:
                self.enc[f"{side}_conv"] = Conv(in_channels, c, 3)
            else:
                self.enc[f"{side}_down"] = block(c, c, down=True)
                skips.append(c)
                if encoder_type == "skip":
                    self.enc[f"{side}_aux_down"] = Conv(aux, aux, 0, down=True, taps=taps)
                    self.enc[f"{side}_aux_skip"] = Conv(aux, c, 1)
                if encoder_type == "residual":
                    self.enc[f"{side}_aux_residual"] = Conv(aux, c, 3, down=True, taps=taps, fused=True)
                    aux = c
            for i in range(num_blocks):
                self.enc[f"{side}_block{i}"] = block(
                    c, model_channels * mult, img_resolution >> level in attn_resolutions
                )
                c = model_channels * mult
                skips.append(c)
        for level, mult in reversed(list(enumerate(channel_mult))):
            side = f"{img_resolution >> level}x{img_resolution >> level}"
            if level == top:
                self.dec[f"{side}_in0"] = block(c, c, True)
                self.dec[f"{side}_in1"] = block(c, c)
            else:
                self.dec[f"{side}_up"] = block(c, c, up=True)
            for i in range(num_blocks + 1):
                attention = i == num_blocks and img_resolution >> level in attn_resolutions
                self.dec[f"{side}_block{i}"] = block(c + skips.pop(), model_channels * mult, attention)
                c = model_channels * mult
            if decoder_type == "skip" and level < top:
                self.dec[f"{side}_aux_up"] = Conv(out_channels, out_channels, 0, up=True, taps=taps)
            if decoder_type == "skip" or level == 0:
                self.dec[f"{side}_aux_norm"] = norm(c, 1e-6)
                self.dec[f"{side}_aux_conv"] = Conv(c, out_channels, 3, gain=1e-5)

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        emb = self.map_noise(noise_labels)
        if self.map_label is not None:
            emb = emb + _label(self.map_label, class_labels, emb, math.sqrt(self.map_label.in_features))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

        skips, aux = [], x
        for name, part in self.enc.items():
            if "aux_down" in name:
                aux = part(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + part(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + part(aux)) / math.sqrt(2)
            else:
                x = part(x, emb) if isinstance(part, Block) else part(x)
                skips.append(x)

        out, normed = None, x
        for name, part in self.dec.items():
            if "aux_up" in name:
                out = part(out)
            elif "aux_norm" in name:
                normed = activated(part, F.silu, x)
            elif "aux_conv" in name:
                out = part(normed) if out is None else part(normed) + out
            else:
                x = part(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, emb)
        assert out is not None, "a decoder ends with an output convolution"
        return out


class DhariwalUNet(ClassConditional):
    """(B,in_channels,R,R) and noise labels (b,), b = B or 1 -> (B,out_channels,R,R), R = img_resolution.

    `class_labels` are (B,) int64, or (B,label_dim) one-hot. Without them or `augment_labels` (B,augment_dim) no term is
    added.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int = 3,
        out_channels: int = 3,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
    ):
        super().__init__()
        self.classes = label_dim
        emb = model_channels * channel_mult_emb
        self.map_augment = linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = linear(model_channels, emb)
        self.map_layer1 = linear(emb, emb)
        self.map_label = linear(label_dim, emb, bias=False) if label_dim else None
        self.model_channels = model_channels

        def block(c_in: int, c_out: int, attention: bool = False, up: bool = False, down: bool = False) -> Block:
            heads = c_out // 64 if attention else 0  # no attention below 64 channels
            return Block(c_in, c_out, emb, up=up, down=down, heads=heads, dropout=dropout, adaptive=True)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        c = model_channels * channel_mult[0]
        skips = [c]
        for level, mult in enumerate(channel_mult):
            side = f"{img_resolution >> level}x{img_resolution >> level}"
            if level == 0:
                self.enc[f"{side}_conv"] = Conv(in_channels, c, 3)
            else:
                self.enc[f"{side}_down"] = block(c, c, down=True)
                skips.append(c)
            for i in range(num_blocks):
                attention = img_resolution >> level in attn_resolutions
                self.enc[f"{side}_block{i}"] = block(c, model_channels * mult, attention)
                c = model_channels * mult
                skips.append(c)
        for level, mult in reversed(list(enumerate(channel_mult))):
            side = f"{img_resolution >> level}x{img_resolution >> level}"
            if level == len(channel_mult) - 1:
                self.dec[f"{side}_in0"] = block(c, c, True)
                self.dec[f"{side}_in1"] = block(c, c)
            else:
                self.dec[f"{side}_up"] = block(c, c, up=True)
            for i in range(num_blocks + 1):
                attention = img_resolution >> level in attn_resolutions
                self.dec[f"{side}_block{i}"] = block(c + skips.pop(), model_channels * mult, attention)
                c = model_channels * mult
        self.out_norm = norm(c, 1e-5)
        self.out_conv = Conv(c, out_channels, 3, gain=0.0)

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        sin, cos = sinusoid(noise_labels, self.model_channels, endpoint=False)
        emb = torch.cat([cos, sin], dim=1)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + _label(self.map_label, class_labels, emb, 1.0)
        emb = F.silu(emb)

        skips = []
        for part in self.enc.values():
            x = part(x, emb) if isinstance(part, Block) else part(x)
            skips.append(x)
        for name, part in self.dec.items():
            x = part(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, emb)
        return self.out_conv(activated(self.out_norm, F.silu, x))


class _Positional(nn.Module):
    """Positional embedding: sin then cos, highest frequency first, the order that `map_layer0` was trained on."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, noise: Tensor) -> Tensor:
        return torch.cat(sinusoid(noise, self.channels, endpoint=True), dim=1)


class _Fourier(nn.Module):
    """Fourier features, sin then cos, of random frequencies that the checkpoint holds."""

    def __init__(self, channels: int):
        super().__init__()
        self.freqs: Tensor
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, noise: Tensor) -> Tensor:
        angle = noise[:, None] * (2 * math.pi * self.freqs.to(noise.dtype))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


def _label(layer: nn.Linear, labels: Tensor | None, emb: Tensor, scale: float) -> Tensor:
    """The term of labels (B,) or one-hot (B,K). Without them they are zeros: only the layer's bias is added."""
    if labels is None:
        labels = emb.new_zeros(1, layer.in_features)
    elif labels.dim() == 1:
        labels = one_hot(labels, layer.in_features, emb)
    return layer(labels * scale)
