"""What a tracker is told of a finished run: its figures, curves, audit, and the first images with their pictures."""

from dataclasses import replace
from pathlib import Path

from dp.evaluation.stages import Stage
from dp.output import rescore
from dp.output.iterations import read_iterations
from dp.output.pictures import Shown, png
from dp.output.tracked import Content, Grid, audit_grid, figures_of, image_grid
from dp.runs.shown import shown


def content(folder: Path, summary: dict, preset: str | None, images: int) -> Content:
    """The content of a finished run. `images`: how many of its first images have pictures."""
    tables = {"audit": audit_grid(summary), "images": images_of(folder, summary, images) if images else None}
    found = {name: grid for name, grid in tables.items() if grid is not None}
    return Content(figures_of(summary, preset), read_iterations(folder), found)


def images_of(folder: Path, summary: dict, images: int) -> Grid | None:
    """The first defended images of the first seed, with pictures: original, attacked, and of the attacked image the
    mask, if the purifier has one, and a sample of its purification, where that is quick.

    None if no picture can be made on this machine.
    """
    material = shown(summary)
    if isinstance(material, str):
        return None
    group = next(group for group in rescore.saved(folder) if group.arm == "defended")  # of the first seed
    group = group._replace(rows=group.rows[:images], x_adv=group.x_adv[:images])
    ids = [row["id"] for row in group.rows]
    place = {i: k for k, i in enumerate(material.ids)}
    pictures: dict[int, dict[str, str]] = {
        i: {"original": _base64(png(material.images[place[i]])), "attacked": _base64(png(x))}
        for i, x in zip(ids, group.x_adv, strict=True)
    }
    if material.has_mask:
        for i, mask in zip(ids, material.masks(group.x_adv), strict=True):
            pictures[i]["mask"] = _base64(png(mask))
    for i, address in _purified(material, group):
        pictures[i]["purified"] = _base64(address)
    return image_grid(group.rows, pictures)


def _purified(material: Shown, group: rescore.Saved) -> list[tuple[int, str]]:
    """The first sample of the first attacked images, as the page would purify them by default."""
    one = replace(material, samples=1)
    few = min(one.affordable(), len(group.rows))
    if not material.nfe or not few:
        return []
    ids = [row["id"] for row in group.rows[:few]]
    samples, _ = one.purified(group.x_adv[:few], ids, group.seed, Stage.ADV)
    return [(i, png(sample[0])) for i, sample in zip(ids, samples, strict=True)]


def _base64(address: str) -> str:
    return address.partition(",")[2]
