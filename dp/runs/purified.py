"""One's own images through a purifier, without an attack."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dp.repeatable import set_repeatable
from dp.rng import Streams
from dp.runs.build import defense, in_precision
from dp.runs.caveats import bound
from dp.runs.compose import make
from dp.runs.machine import device_of
from dp.runs.pipeline import fetch_missing

STAGE = "purify"  # of the noise: that of no run


class Purified(NamedTuple):
    """Purified images. `x`: (B,C,H,W) in [0,1], as given. `mask`: (B,1,H,W), where the strong noise goes; None for a
    purifier without a mask. `samples`: (samples,B,C,H,W) in [0,1], each with noise of its own. `nfe`: network
    evaluations of one sample.
    """

    x: Tensor
    mask: Tensor | None
    samples: Tensor
    nfe: int


def purified(config: dict, x: Tensor, samples: int, seed: int) -> Purified:
    """Purify images x (B,C,H,W) in [0,1] by the scored defense of a configuration.

    The noise of image i and sample k depends on (seed, i, k) alone. Raises ValueError for fewer than one sample, and
    where the networks do not take such images.
    """
    if samples < 1:
        raise ValueError(f"need samples >= 1, got samples={samples}")
    fetch_missing({**config, "dataset": {}})  # its images are not needed
    device = device_of(config)
    set_repeatable(device)
    scored, parts, masks = in_precision(defense(config, device), config["scored_dtype"]), [], []
    node = config["purifier"].get("mask")
    for at in range(0, len(x), config["dataset"]["lanes"]):
        some = x[at : at + config["dataset"]["lanes"]].to(device)
        streams = Streams(range(at, at + len(some)), seed, STAGE, config["rng"])
        try:
            with torch.no_grad():
                parts.append(torch.stack([scored.purify(some, streams.draw(k)) for k in range(samples)]).cpu())
                if node is not None:
                    mask = make(node, modules=config["plugins"]["modules"])
                    masks.append(mask(some, scored.denoiser, scored.classifier, **bound(scored.purifier)).cpu())
        except RuntimeError as error:
            shape = "x".join(map(str, x.shape[1:]))
            raise ValueError(f"need networks for images of {shape}, got some that say: {error}") from error
    return Purified(x, torch.cat(masks) if masks else None, torch.cat(parts, dim=1), scored.nfe)


def photos(paths: Sequence[Path], shape: Sequence[int]) -> Tensor:
    """Photographs as images (B,C,H,W) in [0,1] of a `shape` (C,H,W): the central square, resized; gray if C is 1.

    Raises ValueError for a file that is no picture.
    """
    from torchvision.transforms import functional  # imported here because it takes seconds

    images, (channels, height, width) = [], shape
    for path in paths:
        try:
            with Image.open(path) as image:
                photo = image.convert("L" if channels == 1 else "RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise ValueError(f"need a picture, got {path} ({type(error).__name__}): give a PNG or JPEG file") from None
        square = functional.center_crop(functional.to_tensor(photo), [min(photo.size)] * 2)
        images.append(functional.resize(square, [height, width], antialias=True).clamp(0, 1))
    return torch.stack(images)
