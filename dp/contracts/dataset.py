"""The contract of a dataset: types, shapes and range of its images, and the same images every time."""

from collections.abc import Iterator

import torch

from dp.contracts.failure import Failure
from dp.subset import Subset

DARKEST = 2 / 255  # an image whose brightest pixel is below was divided by 255 twice


def failures(subset: Subset, again: Subset, images: int) -> list[Failure]:
    """The properties that a loader lacks. `subset`, `again`: what two calls for so many `images` returned."""
    found = list(_of_shapes(subset, images))
    return found or [*_of_values(subset), *_repeats(subset, again)]


def _of_shapes(subset: Subset, images: int) -> Iterator[Failure]:
    shape = tuple(subset.x.shape)
    if len(shape) != 4 or shape[0] != images or shape[1] not in (1, 3):
        what = f"x is {shape} for {images} images"
        yield Failure("shape", what, "return (N,C,H,W) with C = 1 or 3, as many images as were asked for")
    elif not tuple(subset.ids.shape) == tuple(subset.y.shape) == (images,):
        what = f"ids is {tuple(subset.ids.shape)} and y is {tuple(subset.y.shape)} for {images} images"
        yield Failure("shape", what, "return one id and one label for each image")
    types = (subset.x.dtype, subset.ids.dtype, subset.y.dtype)
    if types != (torch.float32, torch.int64, torch.int64):
        what = f"x, ids and y are {', '.join(map(str, types))}"
        yield Failure("types", what, "return float32 images and int64 ids and labels")


def _of_values(subset: Subset) -> Iterator[Failure]:
    low, high = subset.x.min().item(), subset.x.max().item()
    if not (low >= 0 and DARKEST < high <= 1):
        cause = "they are divided by 255 twice" if low >= 0 and high <= DARKEST else "they are not scaled to [0, 1]"
        yield Failure("range", f"the images reach from {low:.3g} to {high:.3g}", f"the likely cause is that {cause}")
    if subset.ids.unique().numel() != len(subset.ids):
        what = f"{len(subset.ids) - subset.ids.unique().numel()} ids stand twice"
        yield Failure("ids", what, "an id is the index in the full test set, because the noise of an image follows it")
    if subset.y.min() < 0:
        yield Failure("labels", f"a label is {int(subset.y.min())}", "labels count from 0")


def _repeats(subset: Subset, again: Subset) -> Iterator[Failure]:
    unequal = [name for name in Subset._fields if not torch.equal(subset._asdict()[name], again._asdict()[name])]
    if unequal:
        what = f"two calls returned other {', '.join(unequal)}"
        advice = "take a fixed subset (dp.datasets.fixed_ids), sort the files, and augment nothing"
        yield Failure("determinism", what, advice)
