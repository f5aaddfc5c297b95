"""The results of the study canvas_claim.py as text, and the picture of what the defenses do to images."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from canvas_cells import FIRST, INSIDE, OUTSIDE, PAIRS, Part, Row, at, lacking, rows_of
from cells import RESULTS, markdown
from matplotlib.patches import Rectangle
from rich.console import Console
from torch import Tensor

from dp.canvas import held_out
from dp.defense.defended import Defended
from dp.diffusion.sampling import renoise, to_01, to_pm1
from dp.output import report
from dp.purifiers import hetero
from dp.purifiers.attention_mask import attention_maps
from dp.rng import Streams
from dp.runs import compose
from dp.runs.build import build

TABLE = RESULTS / "tables" / "canvas_claim.csv"
TEXT, PICTURE = TABLE.with_suffix(".md"), RESULTS / "figures" / "canvas_claim.png"
SHOWN, DRAWS = (1, 5), 16  # images of the picture; samples in a mean
COLUMNS = ("image, true box", "attention", "mask", "noised", "purified", "attacked, purified", "damage")


def show(missing: list[Part], console: Console) -> None:
    """Print what is missing with its cost, and what the rest of the study takes."""
    for part in missing:
        console.print(f"{part.minutes:6.1f} core minutes: {part.name}")
    for world in dict.fromkeys(part.world for part in missing):
        for line in lacking(world):
            console.print(f"{world.name} needs: {line}", markup=False)
    console.print(f"{len(missing)} parts are missing, {hours(missing):.1f} core hours")


def hours(missing: list[Part]) -> float:
    """The cost of parts in hours of one core."""
    return sum(part.minutes for part in missing) / 60


def spread(line: dict, name: str) -> list[str]:
    """The points of a gain and its interval as text; empty if the line has none."""
    if name not in line:
        return ["", ""]
    return [f"{line[name]:+.1f}", f"{line[f'{name}_low']:+.1f} to {line[f'{name}_high']:+.1f}"]


def cells_of(line: dict) -> list[str]:
    """The cells of a line, in the columns of `HEAD`."""
    figures = [f"{line['standard']:.1f}", f"{line['robust']:.1f}", f"{line['low']:.1f} - {line['high']:.1f}"]
    seeds = f"{line['seed_std']:.1f}" if line["seeds"] > 1 else ""
    trained = [f"{line['over_trainings']:+.1f}", f"{line['trainings_std']:.1f}"] if "trainings" in line else ["", ""]
    count = f"{line['images']} x {line['seeds']}"
    gains = [*spread(line, "gain"), *spread(line, "corrected")]
    return [line["defense"], line["attack"], count, *figures, seeds, *gains, *trained, f"{line['null']:.1f}"]


HEAD = ["defense", "attack", "images x seeds", "standard", "robust", "95 %", "seed std", "minus uniform", "paired 95 %"]
HEAD += ["corrected", "paired 95 %", "mean over trainings", "std over trainings", "null"]


def text(lines: list[dict], transfers: list[dict], times: dict[str, dict[str, dict]], missing: list[Part]) -> str:
    """The results as a page. `times`: the calibrations by world and row."""
    duration = sum(line["seconds"] for line in lines)
    words = (
        "# Where noise helps on images that do not fill their frame\n\n`python scripts/studies/canvas_claim.py`: "
        f"{report.clock(duration)} of worker time so far. Percent; robust accuracy is the "
        "average of 20 fresh samples. Intervals are over images, 95 %, and not corrected for their number. `Minus "
        "uniform` is the difference to the uniform noise that the row is matched to, under the same attack and on the "
        "same images. `Corrected` is the difference to uniform noise at the row's own standard accuracy, between two "
        "of the uniform rows. Seed std and the spread over trainings are no intervals: the first is over seeds on the "
        f"same images, the second over {1 + len(PAIRS)} pairs of networks. Rows of the true box are an oracle. Null: "
        "random noise of the same size.\n"
    )
    tables = []
    for world in dict.fromkeys(line["networks"] for line in lines):
        own = [cells_of(line) for line in lines if line["networks"] == world]
        tables.append(markdown(world, HEAD, own))
    if transfers:
        rows = [[t["from"], t["to"], str(t["images"]), f"{t['robust']:.1f}"] for t in transfers]
        title = "Images that PGD made for one row, scored by another, one seed"
        tables.append(markdown(title, ["made for", "scored by", "images", "robust"], rows))
    rows = [
        [world, name, f"{one['t']:g}" if "t" in one else "", f"{one['standard']:.1f}"]
        for world, known in times.items()
        for name, one in known.items()
    ]
    title = "Calibration on images that no row uses"
    tables.append(markdown(title, ["networks", "defense", "t_l", "standard, single sample"], rows))
    commands = [[line["networks"], line["defense"], line["attack"], f"`{line['command']}`"] for line in lines]
    tables.append(markdown("Commands", ["networks", "defense", "attack", "of one seed"], commands))
    end = f"\n{len(missing)} parts are not measured yet, about {hours(missing):.0f} core hours.\n" if missing else ""
    return words + "\n" + "\n".join(tables) + end


def draw(path: Path, known: dict[str, dict[str, float]]) -> None:
    """For some images and three defenses: attention, mask, noised, purified, and where the damage is done.

    `known`: times of the strong noise by world and row; where one is not calibrated it is .2.
    """
    boxes, rows = held_out().box, (rows_of(FIRST)[0], INSIDE[0], OUTSIDE[0])
    tiles = [attacked_tiles(row, known.get(FIRST.name, {}).get(row.name, 0.2)) for row in rows]
    figure, axes = plt.subplots(len(SHOWN) * len(rows), len(COLUMNS), figsize=(11.5, 10), layout="constrained")
    for i, image in enumerate(SHOWN):
        most = max(float(own[i][-1].max()) for own in tiles)
        for j, row in enumerate(rows):
            place = axes[len(rows) * i + j]
            for k, (ax, tile) in enumerate(zip(place, tiles[j][i], strict=True)):
                ax.imshow(tile, cmap="magma", vmin=0, vmax=most if k == len(COLUMNS) - 1 else 1)
                ax.set(xticks=[], yticks=[])
            top, left, bottom, right = (int(v) for v in boxes[image])
            corner, sides = (left - 0.5, top - 0.5), (right - left, bottom - top)
            place[0].add_patch(Rectangle(corner, *sides, fill=False, ec="yellow"))
            place[0].set_ylabel(row.name, fontsize=8)
    for ax, column in zip(axes[0], COLUMNS, strict=True):
        ax.set_title(column, fontsize=9)
    figure.suptitle(
        "canvas: the image with its true box, the classifier's attention, the pixels with strong noise, the noised "
        "image, its\npurified form, that of an attacked image, and how far the attack moves the purified image (mean "
        f"of {DRAWS} samples, one scale for an image, bright: far)",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def attacked_tiles(row: Row, t: float) -> list[list[np.ndarray]]:
    """The tiles of the shown images under a row whose strong noise has time t, attacked with the quick budget."""
    given = (*FIRST.overrides, *row.overrides, *at(row, t), "attack=pgd_eot", f"protocol.images={max(SHOWN) + 1}")
    evaluation = build(compose.composed(*given))
    chosen, arm = evaluation.subset.select(torch.tensor(SHOWN)), evaluation.arms["defended"]
    rng, asked = Streams(chosen.ids, 0, "attack"), (chosen.x, chosen.y, evaluation.threat)
    state = arm.attack.start(arm.attacked, *asked, rng.draw(0))
    for k in range(arm.attack.steps):
        state = arm.attack.step(arm.attacked, state, *asked, rng.draw(1 + k))
    return tiles_of(arm.scored, row, t, chosen.x, state.x_adv, chosen.ids)


@torch.no_grad()
def tiles_of(model: Defended, row: Row, t: float, x: Tensor, x_adv: Tensor, ids: Tensor) -> list[list[np.ndarray]]:
    """The tiles of each image, in the order of `COLUMNS`: (H,W,3) in [0,1], or (H,W) where it is a map."""
    classifier, denoiser, rng = model.classifier, model.denoiser, Streams(ids, 0, "picture")
    assert denoiser is not None, "every row of the study has one"
    maps = attention_maps(classifier.features(x), (x.shape[2], x.shape[3]), "minmax").amax(dim=1, keepdim=True)
    options = compose.composed(*FIRST.overrides, *row.overrides)["purifier"]
    if row.ratio is None:
        mask, t, low = torch.ones_like(maps), options["t"], options["t"]
    else:
        keys = {key: options[key] for key in ("tau", "phi", "eq8_literal")}
        mask, low = hetero.strong_pixels(x, denoiser, classifier, **keys), t / row.ratio
    levels = [renoise(to_pm1(x), 0.0, denoiser.sigma(v), rng.randn_like(x)) for v in (t, low)]
    noised = to_01(mask * levels[0] + (1 - mask) * levels[1], "plain")
    draws = [Streams(ids, 0, "picture").draw(1 + k) for k in range(DRAWS)]
    pure = torch.stack([model.purify(x, noise) for noise in draws])
    again = [Streams(ids, 0, "picture").draw(1 + k) for k in range(DRAWS)]
    moved = torch.stack([model.purify(x_adv, noise) for noise in again])
    damage = (moved - pure).abs().mean(dim=(0, 2))  # (B,H,W)
    image, dirty, clean, wrong = ([one.permute(1, 2, 0).numpy() for one in of] for of in (x, noised, pure[0], moved[0]))
    rest = (maps[:, 0].numpy(), mask[:, 0].numpy(), dirty, clean, wrong, damage.numpy())
    return [list(tiles) for tiles in zip(image, *rest, strict=True)]
