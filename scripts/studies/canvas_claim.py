"""Where does noise help on images that do not fill their frame? The claim of the main study on the benchmark canvas.

Noise is uniform, or strong inside or outside the classifier's mask, a random mask of equal coverage, or the true box.
The noise times of the others are set by bisection, so that their standard accuracy on images that no run uses equals
that of uniform noise. Each row is attacked by PGD 40 x EOT 16, the most important ones by everything that might find
more: `strict` with a converged budget, attacks through the mask, attacks confined to the true box and to its outside,
decisions alone, and images that were made for the other rows. The rows are repeated on other networks, where
photographs are tied to classes, and on digits.

Each cell is a run, and its images are attacked in parts of 32. A part is archived in results/measured/ when it ends, so
that the same command goes on where it stopped. `--only N` limits the parts of this start, `--list` shows what is
missing with its cost, `--train` makes the weights that are missing. The study writes results/tables/canvas_claim.md,
.csv and, with --picture, results/figures/canvas_claim.png from the parts that are there. Images that were made for
another row are scored from results/runs/, where the parts of this machine lie.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import canvas_cells
import canvas_report
import cells
import numpy as np
import outputs
import pandas as pd
import torch
from canvas_cells import FIRST, IMAGES, PLAIN, SEEDS, VOTES, WORLDS, Part, Row, World, at, rows_of
from canvas_figures import lines
from convergence import Budget
from rich.console import Console

from dp.commands import train
from dp.evaluation.draws import fresh_samples
from dp.output import record, report
from dp.runs import compose
from dp.runs.build import build
from dp.runs.errors import command

FOLDER = "canvas-claim"  # in results/measured/
SAMPLES, ALL, HIGHEST, HALVINGS = 3, 512, 0.6, 6  # calibration: samples of an image; images; times up to .6, to .005
console = Console(width=150, highlight=False)


def stored(name: str) -> dict[str, Any]:
    """What the study has measured besides its runs, from its file `name`; empty if there is none."""
    path = cells.RESULTS / "measured" / FOLDER / name
    return json.loads(path.read_text()) if path.exists() else {}


def store(name: str, data: dict[str, Any]) -> None:
    """Write it."""
    path = cells.RESULTS / "measured" / FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    record.write_atomic(path, (json.dumps(data, indent=1) + "\n").encode())


def standard(given: tuple[str, ...]) -> float:
    """The share of right single samples on the clean test images that no run of the study uses."""
    evaluation = build(compose.composed(*given, f"protocol.images={ALL}"))
    others, model = evaluation.subset.select(slice(IMAGES, ALL)), evaluation.arms["defended"].scored
    ids, lanes, rng = others.ids.tolist(), evaluation.lanes, evaluation.rng
    logits = fresh_samples(model, others.x, ids, 0, "calibrate", SAMPLES, lanes, rng=rng)
    return float((logits.argmax(dim=2) == others.y.unsqueeze(1)).float().mean())


def asked(world: World, row: Row) -> list:
    """What a calibration depends on: it is made anew if this changes."""
    reference = rows_of(world)[0]
    keys = [canvas_cells.key((*world.overrides, *one.overrides), SEEDS[0], ALL) for one in (row, reference)]
    return [SAMPLES, HIGHEST, HALVINGS, IMAGES, *keys]


def calibrated(world: World) -> dict[str, dict]:
    """The matched rows of a world that are calibrated, and the reference: times and standard accuracy, by name."""
    known = stored("times.json").get(world.name, {})
    rows = [row for row in rows_of(world) if row.name in known]
    return {row.name: known[row.name] for row in rows if known[row.name]["asked"] == asked(world, row)}


def calibrate(world: World, row: Row) -> None:
    """Find the time at which the row's standard accuracy is the reference's, and store it."""
    reference, known = rows_of(world)[0], calibrated(world)
    if reference.name not in known:
        share = standard((*world.overrides, *reference.overrides))
        known[reference.name] = {"standard": 100 * share, "asked": asked(world, reference)}
    if row is not reference:
        target, low, high = known[reference.name]["standard"] / 100, 0.0, HIGHEST
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            more = standard((*world.overrides, *row.overrides, *at(row, middle))) > target
            low, high = (middle, high) if more else (low, middle)
        t = float(f"{(low + high) / 2:.4g}")
        reached = standard((*world.overrides, *row.overrides, *at(row, t)))
        known[row.name] = {"t": t, "standard": 100 * reached, "asked": asked(world, row)}
        console.print(f"{world.name}: {row.name} has the standard accuracy {100 * reached:.1f} at t_l = {t}")
    store("times.json", stored("times.json") | {world.name: stored("times.json").get(world.name, {}) | known})


def times() -> dict[str, dict[str, float]]:
    """The times of the strong noise of all rows that are calibrated, by world and row."""
    found = {}
    for world in WORLDS:
        found[world.name] = {name: one["t"] for name, one in calibrated(world).items() if "t" in one}
    return found


def given_of(world: World, row: Row, attack: canvas_cells.Attack, known: dict) -> tuple[str, ...] | None:
    """The overrides of a cell but for its seed and images; None if its row is not calibrated."""
    t = known.get(world.name, {}).get(row.name)
    return None if row.ratio is not None and t is None else canvas_cells.overrides(world, row, attack, t)


def make(part: Part) -> None:
    """Calibrate the row of a part if it must be, run the part and archive it."""
    begun = time.monotonic()
    if part.row.ratio is not None and part.row.name not in calibrated(part.world):
        calibrate(part.world, part.row)
    given = given_of(part.world, part.row, part.attack, times())
    assert given is not None, "it is calibrated now"
    before = canvas_cells.held(given, part.seed, part.attack.images)
    if before < part.images:
        summary, _ = cells.grown(canvas_cells.seeded(given, part.seed), part.images, before, 1)
        robust = summary["robust"]["average"]["value"]
        console.print(f"{part.name}: {robust:.1f} % robust so far; {report.clock(time.monotonic() - begun)}")
    transfer()


def attacked(given: tuple[str, ...], images: int) -> dict[int, Any]:
    """The attacked images of a cell with the first seed that lie on this machine, by id."""
    found = {}
    for n in range(canvas_cells.PART, images + 1, canvas_cells.PART):
        for path in sorted((cells.RESULTS / "runs" / canvas_cells.key(given, SEEDS[0], n)).glob("part-*.safetensors")):
            one = record.read_part(path)
            if one["arm"] == "defended":
                found |= dict(zip(one["ids"].tolist(), one["x_adv"], strict=True))
    return found


def transfer() -> None:
    """Score the images that PGD made for each row by the other rows, as far as they are here and not scored yet."""
    known, rows = times(), [*canvas_cells.enemies(), *canvas_cells.BOXES]
    scores = stored("transfer.json")
    cell = {row.name: given_of(FIRST, row, PLAIN, known) for row in rows}
    made = {name: attacked(given, IMAGES) for name, given in cell.items() if given is not None}
    for name, given in cell.items():
        todo = {other: [i for i in made[other] if str(i) not in scores.get(f"{other} > {name}", {})] for other in made}
        if given is None or not any(todo.values()):
            continue
        evaluation = build(compose.composed(*canvas_cells.seeded(given, SEEDS[0]), f"protocol.images={IMAGES}"))
        labels = dict(zip(evaluation.subset.ids.tolist(), evaluation.subset.y.tolist(), strict=True))
        for other, ids in todo.items():
            if not ids:
                continue
            x, model = torch.stack([made[other][i] for i in ids]), evaluation.arms["defended"].scored
            lanes, rng = evaluation.lanes, evaluation.rng
            logits = fresh_samples(model, x, ids, SEEDS[0], "adv", VOTES, lanes, rng=rng)
            right = (logits.argmax(dim=2) == torch.tensor([[labels[i]] for i in ids])).float().mean(dim=1)
            new = {str(i): float(share) for i, share in zip(ids, right, strict=True)}
            scores[f"{other} > {name}"] = scores.get(f"{other} > {name}", {}) | new
        store("transfer.json", scores)


def both(given: tuple[str, ...], seed: int, images: int) -> tuple[pd.Series, pd.Series, dict] | None:
    """The clean and the attacked score in [0,1] of each archived image of a cell, by id, and the summary."""
    n = canvas_cells.held(given, seed, images)
    if not n:
        return None
    folder = cells.RESULTS / "measured" / canvas_cells.key(given, seed, n)
    clean, adv = (cells.image_scores(folder, side, "average").iloc[:, 0] for side in ("clean", "adv"))
    summary = record.read_summary(folder)
    assert summary is not None, "it is archived"
    return clean, adv, summary


def collected(known: dict, budget: Budget | None) -> dict[tuple[str, str, str], dict]:
    """What is archived, by the names of world, row and attack, in the order of `stages`: `clean` and `adv` are frames
    of scores in [0,1], one line per image and one column per seed, of the seeds that have the most images.
    """
    found: dict[tuple[str, str, str], dict] = {}
    for world, rows, attacks, seed in canvas_cells.stages(budget):
        for row in rows:
            for attack in attacks:
                given = given_of(world, row, attack, known)
                one = None if given is None else both(given, seed, attack.images)
                if one is not None:
                    entry = found.setdefault((world.name, row.name, attack.name), {"seeds": {}})
                    entry["seeds"][seed] = one
                    entry["command"] = "python run.py " + " ".join(canvas_cells.seeded(given or (), seed))
    for entry in found.values():
        seeds = entry.pop("seeds")
        most = max(len(adv) for _, adv, _ in seeds.values())
        kept = {seed: one for seed, one in seeds.items() if len(one[1]) == most}
        entry["clean"], entry["adv"] = (pd.DataFrame({seed: one[k] for seed, one in kept.items()}) for k in (0, 1))
        entry["null"] = float(np.mean([one[2]["null"]["average"]["value"] for one in kept.values()]))
        entry["seconds"] = sum(one[2]["seconds"] for one in seeds.values())
        entry["nfe"] = next(iter(kept.values()))[2]["caveats"]["nfe"]
    return found


def transfers() -> list[dict]:
    """The accuracy of each row on the images that PGD made for another one, in percent."""
    made = []
    for name, scores in stored("transfer.json").items():
        source, _, target = name.partition(" > ")
        robust = 100 * float(np.mean([*scores.values()]))
        made.append({"from": source, "to": target, "images": len(scores), "robust": robust})
    return made


def budget_of(known: dict) -> Budget | None:
    """The converged budget of `strict`, from the cells that are archived."""
    made = []
    for row in canvas_cells.enemies()[:2]:
        for one in canvas_cells.BUDGETS:
            given = given_of(FIRST, row, canvas_cells.strict(row.masked, one, 64), known)
            scores = None if given is None else both(given, SEEDS[0], 64)
            if scores is not None and len(scores[1]) == 64:
                made.append({"defense": row.name, **one._asdict(), "robust": 100 * float(scores[1].mean())})
    return canvas_cells.chosen_budget(made)


def todo() -> Iterator[Part]:
    """The parts that are not archived, the most important first."""
    known = times()
    yield from canvas_cells.parts(known, budget_of(known))


def main() -> int:
    """The command. Returns 0 when the tables are written."""
    parser = outputs.parser(__doc__)
    parser.add_argument("--only", type=int, default=None, metavar="N", help="at most N parts in this start")
    parser.add_argument("--list", action="store_true", help="show the parts that are not archived, and make none")
    parser.add_argument("--train", action="store_true", help="train the networks that the package does not have")
    parser.add_argument("--picture", action="store_true", help="draw what the defenses do to some images")
    args = parser.parse_args()
    if args.train:
        for world in WORLDS:
            for _, words in world.training if canvas_cells.lacking(world) else ():
                train.main(list(words))
        canvas_cells.lacking.cache_clear()
    missing = list(todo())
    if args.list:
        canvas_report.show(missing, console)
        return 0
    ready = [part for part in missing if not canvas_cells.lacking(part.world)]
    for part in ready[: args.only]:
        make(part)
    known = times()
    found = collected(known, budget_of(known))
    if not found:
        raise ValueError("need at least one archived part, got none: start the study without --only 0")
    table, words = (outputs.target(path, args.write) for path in (canvas_report.TABLE, canvas_report.TEXT))
    figures = lines(found)
    pd.DataFrame(figures).to_csv(table, index=False, float_format="%.4f")
    calibrations = {world.name: calibrated(world) for world in WORLDS}
    text = canvas_report.text(figures, transfers(), calibrations, list(todo()))
    record.write_atomic(words, text.encode())
    console.print(f"{table}, {words}")
    if args.picture:
        picture = outputs.target(canvas_report.PICTURE, args.write)
        canvas_report.draw(picture, known)
        console.print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
