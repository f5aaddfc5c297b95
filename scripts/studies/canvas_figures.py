"""The arithmetic of the study canvas_claim.py, on scores of images: differences, uniform's curve, spread."""

from itertools import pairwise

import canvas_cells
import numpy as np
import pandas as pd
from canvas_cells import FIRST, PAIRS, WORLDS, rows_of

from dp.statistics.intervals import interval, paired


def gain(first: pd.Series, second: pd.Series) -> tuple[float, float, float]:
    """second minus first in points over the images that both have, with its paired 95 % interval."""
    ids = first.index.intersection(second.index)
    return tuple(100 * v for v in paired(first.loc[ids].to_numpy(), second.loc[ids].to_numpy()))  # pyright: ignore[reportReturnType]


def along(curve: list[tuple[pd.Series, pd.Series]], standard: float, ids: pd.Index) -> pd.Series | None:
    """The attacked score of uniform noise at a standard accuracy in [0,1], for each image of `ids`.

    `curve`: clean and attacked scores of uniform noise at some times. Between two of them it is interpolated by their
    mean clean scores on these images. None beyond the ends of the curve.
    """
    points = [(float(c.loc[ids].mean()), a.loc[ids]) for c, a in curve if ids.isin(c.index).all()]
    points.sort(key=lambda point: point[0])
    for (low, a), (high, b) in pairwise(points):
        if low <= standard <= high:
            share = 0.0 if high == low else (standard - low) / (high - low)
            return (1 - share) * a + share * b
    return None


def lines(found: dict[tuple[str, str, str], dict]) -> list[dict]:
    """The figures of all that is archived, in percent and points."""
    made = []
    for (world, row, attack), one in found.items():
        home = next(w for w in WORLDS if w.name == world)
        clean, adv = one["clean"].mean(axis=1), one["adv"].mean(axis=1)
        low, high = interval(adv.to_numpy())
        line = {"networks": world, "defense": row, "attack": attack, "images": len(adv), "seeds": one["adv"].shape[1]}
        line |= {"standard": 100 * clean.mean(), "robust": 100 * adv.mean(), "low": 100 * low, "high": 100 * high}
        line |= {"seed_std": 100 * one["adv"].mean().std(), "null": one["null"], "nfe": one["nfe"]}
        base = found.get((world, rows_of(home)[0].name, attack))
        if base is not None and row != rows_of(home)[0].name:
            same = gain(base["adv"].mean(axis=1), adv)
            line |= dict(zip(("gain", "gain_low", "gain_high"), same, strict=True))
        curve = [found.get((world, canvas_cells.uniform(t).name, attack)) for t in home.times]
        points = [(c["clean"].mean(axis=1), c["adv"].mean(axis=1)) for c in curve if c is not None]
        expected = None if row.startswith("uniform") else along(points, float(clean.mean()), adv.index)
        if expected is not None:
            corrected = gain(expected, adv)
            line |= dict(zip(("corrected", "corrected_low", "corrected_high"), corrected, strict=True))
        made.append(line | {"seconds": one["seconds"], "command": one["command"]})
    return with_trainings(made)


def with_trainings(made: list[dict]) -> list[dict]:
    """The same, where each row on the first networks has the mean and the spread of its gain over all trainings."""
    names = [FIRST.name, *(world.name for world in PAIRS)]
    for line in made:
        if line["networks"] == FIRST.name and "gain" in line:
            same = [m for m in made if (m["defense"], m["attack"]) == (line["defense"], line["attack"])]
            gains = [m["gain"] for m in same if m["networks"] in names and "gain" in m]
            if len(gains) > 1:
                line |= {"trainings": len(gains), "over_trainings": float(np.mean(gains))}
                line["trainings_std"] = float(np.std(gains, ddof=1))
    return made
