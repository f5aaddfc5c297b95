"""The rows of a run as arrays, as `dp archive` keeps them, and back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dp.output import record
from dp.output.run_files import VERDICTS, is_archived

SAMPLES = ("clean", "adv", "seen")  # the class of every sample
DECISIONS = [f"{side}_{rule}" for side in ("clean", "adv") for rule in ("vote", "mean_logits", "mean_softmax")]
COUNTS = {name: torch.int16 for name in (*DECISIONS, "ties")}  # -1: none
COUNTS |= {name: torch.int32 for name in ("looks", "nfe", "lost_at", "iterations")}
ALL = {**COUNTS, "distance": torch.float64}


def arrays_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The rows of a finished run as arrays.

    `ids` and `labels` (images,); `seeds` (seeds,); for each condition `<arm>.clean`, `<arm>.adv` and, with an in-loop
    evaluation, `<arm>.seen`, (seeds,images,samples) int16, the class of every sample; and `<arm>.<field>`
    (seeds,images) for each field of a row that is a number, -1 where it is none.
    """
    seeds = sorted({row["seed"] for row in rows})
    by_key = {(row["arm"], row["seed"], row["id"]): row for row in rows}
    labels = {row["id"]: row["label"] for row in rows}
    ids = sorted(labels)
    arrays = {"ids": torch.tensor(ids), "seeds": torch.tensor(seeds)}
    arrays["labels"] = torch.tensor([labels[i] for i in ids])
    for arm in sorted({row["arm"] for row in rows}):
        grid = [[by_key[arm, seed, i] for i in ids] for seed in seeds]
        for side in SAMPLES:
            if grid[0][0][side]:
                classes = np.array([[row[side] for row in line] for line in grid], dtype=np.int16)
                arrays[f"{arm}.{side}"] = torch.from_numpy(classes)
        for name, dtype in ALL.items():
            values = [[-1 if row[name] is None else row[name] for row in line] for line in grid]
            arrays[f"{arm}.{name}"] = torch.tensor(values, dtype=dtype)
    return arrays


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """The rows of a finished run, archived or not. Raises ValueError for damaged ones."""
    return read_rows(folder) if is_archived(folder) else [dict(row) for row in record.read_rows(folder).values()]


def rows_of(arrays: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """The rows that `arrays_of` was given, by arm, seed and id. Of an older archive the rows lack the fields that it
    does not hold.
    """
    ids, labels = arrays["ids"].tolist(), arrays["labels"].tolist()
    arms = sorted({name.split(".")[0] for name in arrays if "." in name})
    rows = []
    for arm in arms:
        held = {name: arrays[f"{arm}.{name}"].tolist() for name in (*SAMPLES, *ALL) if f"{arm}.{name}" in arrays}
        for s, seed in enumerate(arrays["seeds"].tolist()):
            for k, (i, label) in enumerate(zip(ids, labels, strict=True)):
                row = {"arm": arm, "seed": seed, "id": i, "label": label} | {side: [] for side in SAMPLES}
                row |= {name: values[s][k] for name, values in held.items()}
                rows.append(row | {name: None for name in COUNTS if row.get(name) == -1})
    return rows


def arrays(folder: Path) -> dict[str, Tensor]:
    """The arrays of the archived run in `folder`. Raises ValueError in one line for a file that is none."""
    path = folder / VERDICTS
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"need the rows of an archived run in {path}, got {error}: archive the run again") from None


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the archived run in `folder`. Raises ValueError in one line for a file that is none."""
    return rows_of(arrays(folder))
