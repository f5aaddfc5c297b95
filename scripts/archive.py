"""Copy finished runs from results/runs/ to results/measured/, where tables and figures read them: summary and verdicts
only.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "results" / "measured"


def verdicts(rows: list[dict]) -> dict[str, torch.Tensor]:
    """`ids` and `labels` (images,), `seeds` (seeds,), and per arm and side the class of every draw,
    (seeds,images,draws) int16; where a judge looked on, `<arm>.seen`, its classes at each image's worst point, and
    `<arm>.lost_at` (seeds,images), -1 for never.
    """
    seeds = sorted({row["seed"] for row in rows})
    by = {(row["arm"], row["seed"], row["id"]): row for row in rows}
    labels = {row["id"]: row["label"] for row in rows}
    ids = sorted(labels)
    found = {"ids": torch.tensor(ids), "seeds": torch.tensor(seeds)}
    found["labels"] = torch.tensor([labels[i] for i in ids])
    for arm in sorted({row["arm"] for row in rows}):
        for side in ("clean", "adv", "seen"):
            classes = [[by[arm, seed, i].get(side, []) for i in ids] for seed in seeds]
            if classes[0][0]:
                found[f"{arm}.{side}"] = torch.from_numpy(np.array(classes, dtype=np.int16))
        if f"{arm}.seen" in found:
            lost = [
                [-1 if by[arm, seed, i]["lost_at"] is None else by[arm, seed, i]["lost_at"] for i in ids]
                for seed in seeds
            ]
            found[f"{arm}.lost_at"] = torch.tensor(lost)
    return found


def keep(run: Path) -> Path:
    """The folder under results/measured/ that now holds this run."""
    if not (run / "summary.json").exists():
        raise ValueError(
            f"need a finished run with summary.json, got {run}: start it again, it goes on where it stopped"
        )
    rows = [json.loads(line) for line in (run / "images.jsonl").read_text().splitlines()]
    folder = MEASURED / run.name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "summary.json", folder / "summary.json")
    save_file(verdicts(rows), folder / "verdicts.safetensors")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs, results/runs/<key>")
    for run in parser.parse_args().runs:
        try:
            print(keep(run).relative_to(ROOT))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
