"""How low does it go? Robust accuracy under `strict` as its budget grows, on 64 images of digits and one seed.

Iterations, samples per gradient (EOT) and restarts are multiplied by 4 and by 16, each alone, and by 2 and by 4 all
together. Four defenses. Every cell is a run that is archived in results/measured/ when it ends, so that the same
command goes on where it stopped. `--only` limits the cells of this start, and `--list` shows which are missing. The
study writes results/tables/convergence.md and .csv; their figure is convergence, see figure_data.py.

The converged budget is the cheapest one after which no budget of the next cost takes 2 points or more from any of the
defenses, by the paired estimate; of equally cheap ones, the one that takes the most. Costs are network evaluations for
the gradients of the attack, per image: iterations done, times EOT, times the evaluations of one sample of the attacked
defense.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import outputs
import pandas as pd
import worklist
from cells import RESULTS, finished, image_scores, markdown
from rich.console import Console
from worklist import Run, archived

from dp.output import record
from dp.output.archived import read_rows
from dp.runs import compose
from dp.runs.errors import command
from dp.statistics.intervals import paired

TABLE = RESULTS / "tables" / "convergence.csv"
TEXT = TABLE.with_suffix(".md")
BASE = ("protocol=strict", "protocol.images=64", "protocol.seeds=[2024]", "audit=false")
MASKED = "attack=strict_mask"
DEFENSES = {
    "uniform DiffPure": ("purifier=diffpure", "purifier.eta=1.0"),
    "hetero, strong inside (Eq. 5)": ("purifier=hetero", MASKED),
    "hetero, strong outside (Eq. 8)": ("purifier=hetero", "purifier.eq8_literal=true", MASKED),
    "hetero_official": ("purifier=hetero_official", MASKED),
}
LEAST = 2.0  # points
console = Console(width=150, highlight=False)


class Budget(NamedTuple):
    """Factors of the budget of `strict` on digits."""

    iterations: int = 1
    eot: int = 1
    restarts: int = 1

    @property
    def cost(self) -> int:
        """The cost relative to `strict`, before broken images stop."""
        return self.iterations * self.eot * self.restarts

    @property
    def name(self) -> str:
        """The factors above 1."""
        return ", ".join(f"{v} x {k}" for k, v in self._asdict().items() if v > 1) or "as it is"


FAMILIES = {  # the curves of the figure
    "iterations": [Budget(), Budget(iterations=4), Budget(iterations=16)],
    "EOT": [Budget(), Budget(eot=4), Budget(eot=16)],
    "restarts": [Budget(), Budget(restarts=4), Budget(restarts=16)],
    "of all three": [Budget(), Budget(2, 2, 2), Budget(4, 4, 4)],
}
BUDGETS = sorted({b for family in FAMILIES.values() for b in family}, key=lambda b: (b.cost, b))


def factors(node: Mapping[str, Any], budget: Budget, path: str) -> Iterator[str]:
    """The overrides that multiply every named count of the attack in `node` and of the attacks inside it."""
    for key, value in node.items():
        if isinstance(value, Mapping) and key != "per_dataset":
            yield from factors(value, budget, f"{path}.{key}")
        elif key in Budget._fields and getattr(budget, key) > 1:
            yield f"{path}.{key}={value * getattr(budget, key)}"


def overrides(defense: str, budget: Budget) -> tuple[str, ...]:
    """The overrides of a cell's run."""
    given = (*BASE, *DEFENSES[defense])
    return (*given, *factors(compose.composed(*given)["attack"], budget, "attack"))


def spent(folder: Path, summary: dict) -> float:
    """Network evaluations for the attack's gradients per image, in the mean over images."""
    done = [row["iterations"] for row in read_rows(folder) if row["arm"] == "defended"]
    caveats = summary["caveats"]
    return float(np.mean(done)) * caveats["attack_samples"] * (caveats["attack_nfe"] + 1)


def line(defense: str, budget: Budget, first: pd.DataFrame, given: tuple[str, ...]) -> dict:
    """A cell as data, in percent. `first`: the scores of the images under `strict` as it is."""
    summary, folder = finished(given)
    scores = image_scores(folder, "adv", "average")
    taken, low, high = (100 * v for v in paired(scores.mean(axis=1).to_numpy(), first.mean(axis=1).to_numpy()))
    found = {"defense": defense, "budget": budget.name, **budget._asdict(), "spent": spent(folder, summary)}
    found |= {"standard": summary["standard"]["average"]["value"], "robust": 100 * float(scores.mean(axis=None))}
    found |= {"null": summary["null"]["average"]["value"], "taken": taken, "taken_low": low, "taken_high": high}
    return found | {"run": folder.name, "command": "python run.py " + " ".join(given)}


def converged(
    lines: list[dict], budgets: Sequence[Budget] = BUDGETS, defenses: Sequence[str] = tuple(DEFENSES)
) -> Budget | None:
    """The cheapest budget after which none of the next cost takes `LEAST` points from any defense; of equally cheap
    ones, the one that takes the most. None if cells that decide are missing, or if no budget but the dearest will do.
    """
    found = {(one["defense"], Budget(*(one[k] for k in Budget._fields))): one["robust"] for one in lines}
    costs = sorted({budget.cost for budget in budgets})
    for cost, next_cost in pairwise(costs):
        now, then = ([b for b in budgets if b.cost == c] for c in (cost, next_cost))
        if any((d, b) not in found for d in defenses for b in (*now, *then)):
            return None
        enough = [b for b in now if all(found[d, b] - found[d, c] < LEAST for d in defenses for c in then)]
        if enough:
            return min(enough, key=lambda budget: sum(found[d, budget] for d in defenses))
    return None


def beyond(lines: list[dict], budget: Budget) -> dict[str, tuple[str, float]]:
    """By defense, the dearer budget that takes the most beyond `budget`, and its points."""
    taken = {}
    for defense in DEFENSES:
        cells = {Budget(*(one[k] for k in Budget._fields)): one for one in lines if one["defense"] == defense}
        dearer = {b: cells[budget]["robust"] - one["robust"] for b, one in cells.items() if b.cost > budget.cost}
        if dearer:
            most = max(dearer, key=lambda b: dearer[b])
            taken[defense] = (most.name, dearer[most])
    return taken


def missing() -> list[tuple[str, Budget]]:
    """The cells that are not archived, the cheapest first."""
    cells = [(defense, budget) for budget in BUDGETS for defense in DEFENSES]
    return [cell for cell in cells if not archived(overrides(*cell))]


def curves(lines: list[dict]) -> dict[str, np.ndarray]:
    """The arrays of the figure `convergence`: every cell as a point of its curves."""
    by_cell = {(one["defense"], *(one[k] for k in Budget._fields)): one for one in lines}
    cells = [
        (d, k, by_cell[defense, *budget])
        for d, defense in enumerate(DEFENSES)
        for k, budgets in enumerate(FAMILIES.values())
        for budget in budgets
        if (defense, *budget) in by_cell
    ]
    ends = [(one["taken"] - one["taken_high"], one["taken"] - one["taken_low"]) for *_, one in cells]
    points = [
        (one["robust"], one["robust"] + a, one["robust"] + b) for (*_, one), (a, b) in zip(cells, ends, strict=True)
    ]
    about = (
        "strict on 64 digits, one seed: accuracy over the attack's budget; bars: paired 95 % interval of the points "
    )
    return {
        "defenses": np.array(list(DEFENSES)),
        "families": np.array(list(FAMILIES)),
        "defense": np.array([d for d, *_ in cells]),
        "family": np.array([k for _, k, _ in cells]),
        "spent": np.array([one["spent"] for *_, one in cells]),
        "robust": np.array(points),
        "about": np.array(about + "taken from strict as it is"),
    }


def text(lines: list[dict]) -> str:
    """The lines as a table for people, and the budget that they lead to."""
    columns = ["defense", "budget", "evaluations per image", "standard", "robust", "points taken", "95 %"]
    rows = []
    for one in lines:
        plain = one["budget"] == Budget().name
        rows.append([one["defense"], one["budget"], f"{one['spent']:.0f}", f"{one['standard']:.1f}"])
        rows[-1] += [f"{one['robust']:.1f}", "" if plain else f"{one['taken']:.1f}"]
        rows[-1] += ["" if plain else f"{one['taken_low']:.1f} to {one['taken_high']:.1f}"]
    budget, left = converged(lines), len(DEFENSES) * len(BUDGETS) - len(lines)
    if budget is None:
        end = f"No budget is known after which none of the next cost takes {LEAST:g} points."
    else:
        more = "; ".join(f"{d}, {name}: {points:.1f}" for d, (name, points) in beyond(lines, budget).items())
        end = f"After `{budget.name}` no budget of the next cost takes {LEAST:g} points or more from any defense. "
        end += f"Accuracy still falls: the most that a dearer one takes beyond it, in points: {more}."
    if left:
        end += f" {left} cells are not measured yet."
    title = "Robust accuracy under strict over its budget"
    note = (
        "64 images of digits, seed 2024, linf 32/255; robust accuracy is the average of 20 fresh samples, in percent. "
    )
    note += "Points taken: from `strict` as it is, with the paired 95 % interval over images.\n"
    return markdown(title, columns, rows) + "\n" + note + "\n" + end + "\n"


def todo() -> list[Run]:
    """The runs that are not archived."""
    return [Run(f"{defense}, {b.name}", overrides(defense, b), b.cost) for defense, b in missing()]


def main() -> int:
    """The command. Returns 0 when the tables are written."""
    args = worklist.started(__doc__, todo, console)
    if args is None:
        return 0
    gone, lines = set(missing()), []
    for defense in DEFENSES:
        firsts = [] if (defense, Budget()) in gone else [finished(overrides(defense, Budget()))[1]]
        first = [image_scores(folder, "adv", "average") for folder in firsts]
        cells = [b for b in BUDGETS if (defense, b) not in gone and first]
        lines += [line(defense, budget, first[0], overrides(defense, budget)) for budget in cells]
    if not lines:
        raise ValueError("need at least one archived cell, got none: start the study without --only 0")
    table, words = (outputs.target(path, args.write) for path in (TABLE, TEXT))
    pd.DataFrame(lines).to_csv(table, index=False, float_format="%.4f")
    record.write_atomic(words, text(lines).encode())
    console.print(f"{table}, {words}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
