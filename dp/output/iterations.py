"""The loss over the iterations of a run: the means over all its images, from its parts, in one file."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dp.evaluation.rows import Row
from dp.output import record, shapes

ITERATIONS = "iterations.json"
MOST = 256  # iterations that the file holds of each condition


class Curve(TypedDict):
    """The attack under one condition, an entry for each of `iterations`, the number of iterations done before.

    `images`: under attack then, over all seeds; `loss` and `gradient_norm`: means over them (see `Point`); `right`: the
    share of right samples in percent, of all images, where one whose attack has stopped, because it was broken, counts
    as wrong. None: the attack did not ask for it.
    """

    iterations: list[int]
    images: list[int]
    loss: list[float | None]
    gradient_norm: list[float | None]
    right: list[float | None]


def write_iterations(folder: Path, rows: Sequence[Row]) -> dict[str, Curve]:
    """Write the curves of a run with these rows, by condition, and return them.

    The file depends on the images and seeds alone, not on how their work was divided or interrupted.
    """
    found = _curves(folder)
    arms = sorted({row["arm"] for row in rows})
    curves = {arm: curve for arm in arms if (curve := _mean([row for row in rows if row["arm"] == arm], found))}
    record.write_atomic(folder / ITERATIONS, (json.dumps(curves, separators=(",", ":")) + "\n").encode())
    return curves


def read_iterations(folder: Path) -> dict[str, Curve]:
    """The curves of a run by condition; none of a run without the file. Raises ValueError for a damaged file."""
    path = folder / ITERATIONS
    if not path.exists():
        return {}
    return shapes.read_json(path, dict[str, Curve], "delete it: the page then lacks the loss over the iterations")


def _curves(folder: Path) -> dict[tuple[str, int, int], Tensor]:
    """The curve (iterations,3) of every image that a part holds one of. A damaged part has none."""
    found = {}
    for path in sorted(folder.glob("part-*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                if "curves" not in file.keys():  # noqa: SIM118 (a safetensors handle is no dict)
                    continue
                about, ids, curves = file.metadata(), file.get_tensor("ids"), file.get_tensor("curves")
        except (SafetensorError, OSError):
            continue
        found |= {(about["arm"], int(about["seed"]), i): c for i, c in zip(ids.tolist(), curves, strict=True)}
    return found


def _mean(rows: Sequence[Row], found: dict[tuple[str, int, int], Tensor]) -> Curve | None:
    """The means over the images of rows; None if no part holds a curve of them."""
    held = [(row, found[key]) for row in rows if (key := (row["arm"], row["seed"], row["id"])) in found]
    length = max((len(curve) for _, curve in held), default=0)
    if not length:
        return None
    values = torch.full((len(held), length, 3), float("nan"), dtype=torch.float64)
    for k, (_, curve) in enumerate(held):
        values[k, : len(curve)] = curve
    ends = torch.tensor([row["iterations"] for row, _ in held])
    under = (ends.unsqueeze(1) > torch.arange(length)).sum(dim=0)  # (length,)
    loss, norm, right = values.nanmean(dim=0).T
    chosen = sorted({round(k * (length - 1) / max(1, min(MOST, length) - 1)) for k in range(min(MOST, length))})
    return Curve(
        iterations=chosen,
        images=under[chosen].tolist(),
        loss=_listed(loss[chosen]),
        gradient_norm=_listed(norm[chosen]),
        right=_listed((100 * right * under / len(held))[chosen]),
    )


def _listed(values: Tensor) -> list[float | None]:
    """Six digits of each value, and None for what is no finite number."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
