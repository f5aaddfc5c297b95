"""IMPure's masked autoencoder (Liu et al. 2023), a vision transformer, with the tensor names of its released code.

The reference is NoWindButRain/IMPure, commit 72f3edc, `recon_model/MAE/RCMMFFDMAE.py`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = 1e-6  # of all layer norms


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B,heads,T,d)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    """A transformer block with its norms in front."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=TINY)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=TINY)
        self.mlp = _Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Patches(nn.Module):
    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # (B,T,width)


class ImpureViT(nn.Module):
    """Rebuilds each patch of normalized images (B,3,H,W) from the other patches and from its own noised features.

    `image`, `patch`: sides in pixels. `chunks`: the number of groups of patches; a group is rebuilt from the others.
    `taps`: the encoder blocks whose outputs are added to that of the last. The defaults are those of the paper.
    """

    def __init__(
        self,
        image: int = 224,
        patch: int = 16,
        chunks: int = 4,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        taps: Sequence[int] = (0, 2, 4, 6, 8),
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        side = image // patch
        if image % patch or side**2 % chunks:
            raise ValueError(f"need patches that divide into equal chunks, got {image=}, {patch=}, {chunks=}")
        self.side, self.patch, self.chunks, self.taps, self.decoder_width = side, patch, chunks, [*taps], decoder_width
        positions = 1 + (2 * side) ** 2  # of a grid of twice the side; the middle is used
        self.patch_embed = _Patches(patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
        self.blocks = nn.ModuleList(_Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=TINY)
        self.proj_layers = nn.ModuleList(nn.Linear(width, width) for _ in taps)
        self.proj_weights = nn.Parameter(torch.ones(len(self.taps) + 1, 1, 1, 1))
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.decoder_embed_norm = nn.LayerNorm(decoder_width, eps=TINY)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))  # the released weights have it; it is not used
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, positions, decoder_width))
        self.decoder_head_embed = nn.Linear((chunks - 1) * width, decoder_width)
        self.decoder_blocks = nn.ModuleList(
            _Block(decoder_width, decoder_heads, mlp_ratio) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=TINY)
        self.decoder_pred = nn.Linear(decoder_width, 3 * patch**2)
        self.decoder_rb1 = nn.Conv2d(3, 3, 3, padding=1)

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return self.side**2

    def forward(self, x: Tensor, noised: Tensor, order: Tensor, scale: float, features: Tensor) -> Tensor:
        """The rebuilt images (B,3,H,W) from normalized images x and noised ones.

        `order` (B,T): a permutation of the patches; runs of T / chunks of it are the chunks. `scale`: of the features
        of a chunk's own noised patches, to which `features` (chunks,B,T/chunks,decoder_width) is added.
        """
        clean, heads = self._encoded(x, order)
        own = self._embedded(self._encoded(noised, order)[0]) * scale + features
        others, back = self._embedded(clean), order.argsort(dim=1)
        out = torch.zeros_like(x).flatten(1).unflatten(1, (self.tokens, -1))  # (B,T,3 p p)
        for i in range(self.chunks):
            mixed = torch.stack([own[j] if j == i else others[j] for j in range(self.chunks)])
            rest = torch.cat([heads[j] for j in range(self.chunks) if j != i], dim=1)  # (B,(chunks-1) width)
            rebuilt = self._decoded(mixed.transpose(0, 1).flatten(1, 2), rest, back)
            mine = (back // (self.tokens // self.chunks) == i).unsqueeze(2)
            out = torch.where(mine, rebuilt, out)
        p, s = self.patch, self.side
        pixels = out.unflatten(2, (p, p, 3)).unflatten(1, (s, s)).permute(0, 5, 1, 3, 2, 4)
        return self.decoder_rb1(pixels.reshape(len(x), 3, s * p, s * p))

    def _middle(self, table: Tensor) -> Tensor:
        """The middle of a table of positions (1,1+(2 side)^2,width) as (1,T,width)."""
        first = (self.side + 1) // 2  # of a grid of 2 side places, (big - side + 1) // 2
        grid = table[:, 1:].unflatten(1, (2 * self.side, 2 * self.side))
        return grid[:, first : first + self.side, first : first + self.side].flatten(1, 2)

    def _encoded(self, x: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Features (chunks,B,T/chunks,width) of the chunks, each encoded alone, and their class tokens."""
        tokens = self.patch_embed(x) + self._middle(self.pos_embed)
        tokens = tokens.gather(1, order.unsqueeze(2).expand_as(tokens)).unflatten(1, (self.chunks, -1)).transpose(0, 1)
        head = (self.cls_token + self.pos_embed[:, :1]).expand(self.chunks, len(x), -1, -1)
        h = torch.cat([head, tokens], dim=2).flatten(0, 1)
        kept, weights = [], self.proj_weights.softmax(dim=0).flatten()
        for k, block in enumerate(self.blocks):
            h = block(h)
            if k in self.taps:
                kept.append(self.proj_layers[self.taps.index(k)](h))
        mean = sum(w * each for w, each in zip(weights, [*kept, h], strict=True))
        out = self.norm(mean).unflatten(0, (self.chunks, len(x)))
        return out[:, :, 1:], out[:, :, 0]

    def _embedded(self, features: Tensor) -> Tensor:
        return self.decoder_embed_norm(self.decoder_embed(features))

    def _decoded(self, tokens: Tensor, rest: Tensor, back: Tensor) -> Tensor:
        """Patches (B,T,3 p p) from tokens in shuffled order and the class tokens of the other chunks."""
        tokens = tokens.gather(1, back.unsqueeze(2).expand_as(tokens)) + self._middle(self.decoder_pos_embed)
        head = self.decoder_head_embed(rest).unsqueeze(1) + self.decoder_pos_embed[:, :1]
        h = torch.cat([head, tokens], dim=1)
        for block in self.decoder_blocks:
            h = block(h)
        return self.decoder_pred(self.decoder_norm(h))[:, 1:]
