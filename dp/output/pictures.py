"""The pictures of a run: clean and attacked images, their difference, masks, and purified samples."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dp.defense.defended import Defended
from dp.evaluation.caveats import bound
from dp.evaluation.stages import Stage
from dp.output.rescore import Saved
from dp.purifiers import hetero, hetero_official
from dp.rng import Streams

# The masks of the purifiers that have one.
MASKS: dict[str, Callable[..., Tensor]] = {
    "dp.purifiers.hetero.purify": hetero.strong_pixels,
    "dp.purifiers.hetero_official.purify": hetero_official.strong_pixels,
}
MOST = 16  # images that are purified by default
WORK = 20_000_000  # values of images that all network evaluations of a run may have together by default


@dataclass(frozen=True)
class Shown:
    """What the pictures of a run are made of.

    `model`: the scored defense; `images`: (N,C,H,W) float32 in [0,1], the clean images, with their `ids`; `purifier`:
    the purifier's node; `samples`: the run's samples of an image; `nfe`: network evaluations of one of them; `lanes`:
    images in a call; `rng`: the generator of the run's noise; `device`: where the model is. Pictures are on the CPU.
    """

    model: Defended
    images: Tensor
    ids: list[int]
    purifier: dict[str, Any]
    samples: int
    nfe: int
    lanes: int
    rng: int = 1
    device: str = "cpu"

    @property
    def has_mask(self) -> bool:
        """True if the mask depends on the image alone. A random mask differs from sample to sample."""
        return self.purifier.get("_target_") in MASKS and not self.purifier.get("random_mask", False)

    def masks(self, x: Tensor) -> Tensor:
        """The masks (B,1,H,W) of images (B,C,H,W) in [0,1]: 1 where they get the strong noise."""
        values = bound(self.model.purifier)
        with torch.no_grad():
            mask = MASKS[self.purifier["_target_"]]
            networks = {"denoiser": self.model.denoiser, "classifier": self.model.classifier}
            parts = [mask(batch.to(self.device), **networks, **values).cpu() for batch in x.split(self.lanes)]
        return torch.cat(parts)

    @property
    def work(self) -> int:
        """Network evaluations that purifying one image takes: all samples, of the clean and of the attacked image."""
        return 2 * self.samples * self.nfe

    def affordable(self) -> int:
        """How many images are purified by default."""
        return min(MOST, len(self.ids), WORK // (max(1, self.work) * self.images[0].numel()))

    def purified(self, x: Tensor, ids: Sequence[int], seed: int, stage: Stage) -> tuple[Tensor, list[list[int]]]:
        """The run's own samples of images x (B,C,H,W) again, with the noise of `stage`, and the class of each sample.

        The samples are (B,samples,C,H,W) in [0,1].
        """
        parts, classes, held = [], [], []
        self.model.on_purified = lambda rng, x_hat: held.append(x_hat.cpu())
        for first in range(0, len(x), self.lanes):
            batch = list(range(first, min(first + self.lanes, len(x))))
            padded = [*batch, *[batch[-1]] * (self.lanes - len(batch))]  # as in a run, which always has full calls
            held.clear()
            with torch.no_grad():
                streams = Streams([ids[k] for k in padded], seed, stage, self.rng)
                logits = self.model.logits(x[padded].to(self.device), streams, self.samples).cpu()
            samples = torch.cat([pack.unflatten(0, (-1, self.lanes)) for pack in held])  # (samples,B,C,H,W)
            if len(samples) < self.samples:  # the defense draws no noise, and was asked once
                samples = samples[:1].expand(self.samples, *samples.shape[1:])
            parts.append(samples.transpose(0, 1)[: len(batch)])
            classes += logits.argmax(dim=2).T[: len(batch)].tolist()
        self.model.on_purified = None
        return torch.cat(parts), classes


def clean_pictures(shown: Shown) -> dict[int, dict]:
    """The clean image of each id."""
    return {i: {"clean": png(x)} for i, x in zip(shown.ids, shown.images, strict=True)}


def clean_masks(shown: Shown) -> dict[int, dict]:
    """The mask of the clean image of each id."""
    return {i: {"clean_mask": png(mask)} for i, mask in zip(shown.ids, shown.masks(shown.images), strict=True)}


def attacked_pictures(shown: Shown, group: Saved, with_mask: bool) -> dict[int, dict]:
    """The attacked image of each id, its difference from the clean one, ten times enlarged around gray, its mask."""
    ids = [row["id"] for row in group.rows]
    place = {i: k for k, i in enumerate(shown.ids)}
    clean = shown.images[[place[i] for i in ids]]
    difference = (0.5 + 10 * (group.x_adv - clean)).clamp(0, 1)
    pictures = {
        i: {"attacked": png(x), "difference": png(d)} for i, x, d in zip(ids, group.x_adv, difference, strict=True)
    }
    if with_mask:
        for i, mask in zip(ids, shown.masks(group.x_adv), strict=True):
            pictures[i]["attacked_mask"] = png(mask)
    return pictures


def purified_pictures(shown: Shown, group: Saved, images: int) -> tuple[dict[int, dict], int]:
    """The purified samples of the first `images` clean and attacked images of a group of the defended condition.

    Also returns how many samples have another class than in the rows: by other code, or another machine's rounding.
    """
    rows = group.rows[:images]
    ids = [row["id"] for row in rows]
    place = {i: k for k, i in enumerate(shown.ids)}
    attacked, adv = shown.purified(group.x_adv[:images], ids, group.seed, Stage.ADV)
    clean, plain = shown.purified(shown.images[[place[i] for i in ids]], ids, group.seed, Stage.CLEAN)
    pairs = [(row["adv"], adv[k]) for k, row in enumerate(rows)] + [(r["clean"], plain[k]) for k, r in enumerate(rows)]
    unequal = sum(a != b for then, now in pairs for a, b in zip(then, now, strict=True))
    pictures = {
        i: {"attacked_purified": [png(x) for x in attacked[k]], "clean_purified": [png(x) for x in clean[k]]}
        for k, i in enumerate(ids)
    }
    return pictures, unequal


def png(image: Tensor) -> str:
    """An image (C,H,W) in [0,1], C 1 or 3, as the address of a PNG that the page holds itself."""
    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
